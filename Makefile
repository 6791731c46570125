.DEFAULT_GOAL := help

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## redirect real connections in network namespaces, without a cluster (MESH=istio and others, BACKEND=nftables)
	scripts/demo.sh

.PHONY: test
test: ## run all tests that need no Kubernetes programs
	scripts/test.sh

.PHONY: storm
storm: ## start PODS (250) pods at once, and CYCLES (400) one after the other; say how long it took and what is left
	scripts/storm.sh

.PHONY: test-api
test-api: ## test ADD against a real kube-apiserver and etcd (the first run builds kube-apiserver for minutes)
	scripts/test-api.sh

.PHONY: e2e
e2e: ## test on a real node without Docker: pods, traffic, reboot (the first run builds Kubernetes for minutes)
	scripts/e2e.sh

.PHONY: e2e-kind
e2e-kind: ## run the same cases on kind, which needs Docker
	scripts/e2e-kind.sh

.PHONY: conformance
conformance: ## compare with the meshes' own programs in CONFORMANCE_BIN (the first run builds OSM's for minutes)
	scripts/conformance.sh

.PHONY: image
image: ## build the image for ARCHS (default: this machine) with docker or buildah, or as an OCI archive in bin/
	scripts/image.sh

.PHONY: chart
chart: ## write the Helm chart's templates anew from deploy/'s kustomizations
	scripts/chart.sh

.PHONY: chart-test
chart-test: ## hold what helm makes of the chart against what kustomize builds (the first run builds both for minutes)
	scripts/chart.sh test

.PHONY: monitoring-test
monitoring-test: ## hold alerts and dashboard against promtool and real metrics (the first run builds promtool for minutes)
	scripts/monitoring.sh

.PHONY: release
release: ## make all files of the release VERSION (default: git's tag) in dist/
	scripts/release.sh

.PHONY: release-test
release-test: ## make a release twice, in two clones of HEAD; compare all files, and look into them
	scripts/release-test.sh

.PHONY: kernels
kernels: ## run the tests of scripts/kernels in another kernel, emulated: KERNEL=5.4 or all (the first run fetches it)
	scripts/kernels.sh

.PHONY: bench
bench: ## measure detour next to the least program that could do the same (two minutes)
	scripts/bench.sh

.PHONY: scale
scale: ## measure what AGENTS (100) node agents cost a real API server (a quarter of an hour)
	scripts/scale.sh

.PHONY: build
build: ## build the plugin, the agent and detourctl into bin/
	scripts/build.sh ./plugin/...

.PHONY: lint
lint: ## run golangci-lint, shellcheck and actionlint
	scripts/lint.sh

.PHONY: vulncheck
vulncheck: ## look for known vulnerabilities in what detour's programs call (needs vuln.go.dev)
	scripts/vulncheck.sh

.PHONY: trace-judge
trace-judge: ## hold the tracer against the kernel by DETOUR_TRACE_PAIRS (2000) random rulesets and packets
	scripts/trace-judge.sh

.PHONY: faults
faults: ## kill the plugin at every system call, and make every one fail, ROUNDS (1) times
	scripts/faults.sh

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s), and trace-judge with 10,000 pairs
	scripts/fuzz.sh

.PHONY: cases
cases: ## write what comes out now into testdata/cases and testdata/admission (read the diff)
	go test -p 1 ./pkg/iptext ./pkg/backend ./pkg/admission -run TestEveryCaseGivesIts -update
