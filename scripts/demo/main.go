// Command demo shows detour at work without a cluster. With cnitool and the chain bridge, host-local, detour it sets up pods
// and an outside in network namespaces, makes real connections, and compares the path of each with the expected one. It needs
// root and iptables; `make demo` builds and starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// version is set by the build.
var version = "development"

// stopSignals end the demo early, with everything cleaned up. SIGPIPE is for `make demo | head`.
var stopSignals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE}

// errDiffer says that the demo worked, and a connection did not go where it should.
var errDiffer = errors.New("connections differ from what is expected")

func main() {
	if isProxy() {
		os.Exit(runProxy())
	}
	os.Exit(run())
}

func run() int {
	o, err := parseFlags(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals...)
	defer stop()
	if err := show(ctx, o, newReport(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		return 1
	}
	return 0
}

func parseFlags(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("demo "+version, flag.ExitOnError)
	name := flags.String("mesh", "osm", "mesh whose rules are shown")
	for _, path := range []struct {
		target            *string
		flag, value, help string
	}{
		{&o.backend, "backend", "", "the net conf's backend: auto, iptables or nftables"},
		{&o.tools, "tools", "", "folder of cnitool, bridge and host-local"},
		{&o.plugins, "plugins", "bin", "folder of detour"},
		{&o.manifests, "manifests", "testdata/demo", "folder with one of YAML for each mesh: its pods and its configuration"},
	} {
		flags.StringVar(path.target, path.flag, path.value, path.help)
	}
	_ = flags.Parse(args) // it ends the process on an error
	var err error
	o.scenario, err = findScenario(*name)
	return o, err
}

// demoTime bounds everything but the cleaning up.
const demoTime = 50 * time.Second

// show runs the demo and leaves nothing behind, whether it succeeds, fails or is interrupted.
func show(ctx context.Context, o options, r report) (err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	r.heading(o.scenario)
	s := &stage{options: o}
	defer func() {
		if closeErr := s.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", closeErr))
		}
	}()
	if err := s.build(ctx); err != nil {
		return interruptedOr(ctx, err)
	}
	adds, err := readLog(s.cni.logFile())
	if err != nil {
		return err
	}
	r.stage(s, adds)
	r.ways(o.scenario)
	results, differ := connectAll(ctx, s, r)
	if ctx.Err() != nil {
		return interruptedOr(ctx, nil)
	}
	if err := s.Close(); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	r.summary(o, results, differ, adds, time.Since(began))
	if len(differ) > 0 {
		return errDiffer
	}
	return nil
}

// connectAll prints the table as it goes and returns all results, and those that differ once more.
func connectAll(ctx context.Context, s *stage, r report) (results, differ []result) {
	r.tableHead()
	for _, sec := range s.scenario.Sections {
		if ctx.Err() != nil {
			return results, differ
		}
		part := s.connect(sec)
		r.section(sec, part)
		results = append(results, part...)
		for _, res := range part {
			if !res.OK() {
				differ = append(differ, res)
			}
		}
	}
	return results, differ
}

// interruptedOr returns err, unless the demo was told to stop: then later failures don't matter.
func interruptedOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted (" + strings.TrimSuffix(context.Cause(ctx).Error(), " signal received") + ")")
	}
	return err
}
