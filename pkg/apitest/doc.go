// Package apitest is for tests only, and all of it but this file has the build tag kubeapi: the real plugin binary, called
// as a runtime calls it, against a real kube-apiserver and etcd, with a ServiceAccount's token, the RBAC of
// deploy/rbac.yaml, rules in the kernel and packets; and all of deploy/: its rights with the agent's tokens, and its admission
// policies behind a mutating webhook that injects as the meshes do; and detourctl trace through what kube-proxy programs for a
// large cluster. `make test-api` provides the programs and runs it.
package apitest
