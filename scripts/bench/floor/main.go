// Command floor is the smallest chained plugin: it programs what package least says and prints prevResult.
package main

import "github.com/detour-cni/detour/scripts/bench/internal/least"

func main() { least.Main("floor", func() error { return nil }) }
