// Command floor is the least that a chained plugin could do: it prints prevResult. Before that it programs
// what package least says.
package main

import "github.com/detour-cni/detour/scripts/bench/internal/least"

func main() { least.Main("floor", func() error { return nil }) }
