// Command bench measures what detour promises, each figure next to the least that could do the same. It prints a table and
// draws two of the figures into the folder that its argument names. It needs root, iptables and nft, and expects detour and
// the programs of its subfolders beside itself; `make bench` builds and starts it. Everything happens in network namespaces
// of its own, except that it holds the host's xtables lock, each time for the few milliseconds of one ADD.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: bench FOLDER")
		return 2
	}
	if err := bench(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		return 1
	}
	return 0
}

// sections are the measurements, in the order in which they run.
var sections = []struct {
	about string
	take  func(context.Context, *lab) ([]row, error)
}{
	{"whole ADDs and DELs, one at a time", oneAtATime},
	{"new connections per second", connectionRates},
	{"programming 10,000 exclusions", programmingTimes},
	{"100 ADDs at once", manyAtOnce},
	{"size, memory, package initialization", footprint},
}

// bench prints the table and writes the plots once all numbers are there, and leaves nothing else behind.
func bench(ctx context.Context, plots string) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	l, err := newLab(ctx, filepath.Dir(self))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	var rows []row
	for _, s := range sections {
		fmt.Fprintf(os.Stderr, "bench: %s\n", s.about)
		more, err := s.take(ctx, l)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.about, err)
		}
		rows = append(rows, more...)
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(a.number, b.number) })
	printTable(os.Stdout, rows)
	fmt.Fprintln(os.Stdout, legend)
	return l.writePlots(plots)
}

const legend = `
Figures are medians unless the row says otherwise. The plugins of 1. to 3. ran in random order, each 50 times, every time in
a new namespace. 1 MB is 10^6 bytes. The floors:
1. a plugin that sends the same netlink messages and prints a result,
2. the same, which first makes the two GETs at once over one connection,
3. the same with iptables-restore; for DEL, a plugin that only prints a result,
4. a client that dials the proxy itself, without rules; for exclusions, the same backend without them. "three rules" are the
   fewest that redirect,
5. nft -f of the same set alone,
6. 100 of 1. at once, or the same ADD while the lock is free.`
