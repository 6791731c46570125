// Package e2e is for tests only, and all of it but this file has the build tag e2e: detour on a real Kubernetes node, as
// users have it. `make e2e` provides the programs and runs it. The cases know a cluster by two methods and don't care how
// it was made.
package e2e
