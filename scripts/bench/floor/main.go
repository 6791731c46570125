// Command floor is the least that a chained plugin could do: it prints prevResult. With DETOUR_BENCH_BATCH it first commits
// that file's netlink messages in the pod's network namespace.
package main

import "github.com/detour-cni/detour/scripts/bench/internal/least"

func main() { least.Main("floor", func() error { return nil }) }
