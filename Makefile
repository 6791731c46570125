.DEFAULT_GOAL := help

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## redirect real connections in network namespaces, no cluster needed (MESH=istio and others, BACKEND=nftables)
	scripts/demo.sh

.PHONY: test
test: ## all tests but those against a real API server
	scripts/test.sh

.PHONY: test-api
test-api: ## ADD against a real kube-apiserver and etcd (the first run builds them: minutes)
	scripts/test-api.sh

.PHONY: e2e
e2e: ## a real node, without Docker: pods, traffic, reboot (the first run builds Kubernetes: minutes)
	scripts/e2e.sh

.PHONY: e2e-kind
e2e-kind: ## the same cases on kind, where Docker is
	scripts/e2e-kind.sh

.PHONY: conformance
conformance: ## detour's rules against those of the meshes' own programs (CONFORMANCE_BIN; OSM's is built: minutes)
	scripts/conformance.sh

.PHONY: image
image: ## the image for ARCHS (this machine's), by docker, buildah or as an OCI archive in bin/
	scripts/image.sh

.PHONY: bench
bench: ## the numbers: each next to the least that could do the same (two minutes)
	scripts/bench.sh

.PHONY: build
build: ## the plugin and the command line tool, into bin/
	scripts/build.sh ./plugin/...

.PHONY: lint
lint: ## golangci-lint and shellcheck
	scripts/lint.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	scripts/fuzz.sh

.PHONY: cases
cases: ## accept the rules that testdata/cases give now (read the diff)
	go test -p 1 ./pkg/iptext ./pkg/backend -run TestEveryCaseGivesIts -update
