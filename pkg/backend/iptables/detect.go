package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Variant is one of the two iptables that a host may have.
type Variant string

// The variants: the one that programs nf_tables and the one with tables of its own.
const (
	Nft    Variant = "nft"
	Legacy Variant = "legacy"
)

// tools are the programs of one variant and family.
type tools struct{ save, restore string }

// ErrNone says that the host has no usable iptables.
var ErrNone = errors.New("no iptables-restore with its iptables-save, neither nft nor legacy, is on PATH: install the package iptables")

// Detect picks the variant for the network namespace it is called in: the legacy one if the namespace has legacy tables
// already, else the host's default (what "iptables-restore" on PATH is), else the one that there is. It adds no rule,
// takes no lock, and starts no program unless "iptables-restore" is a script, whose version it then asks for. It is an error
// if the programs of one of the families are missing, or with no family named those of both.
func Detect(ctx context.Context, families ...rules.Family) (*Backend, error) {
	return detect(ctx, legacyTables, families)
}

// Installed returns a backend for each variant that the host has, without regard to what a namespace uses.
func Installed(ctx context.Context) []*Backend {
	var all []*Backend
	for _, v := range []Variant{Nft, Legacy} {
		if b, err := find(ctx, v); err == nil {
			all = append(all, b)
		}
	}
	return all
}

// Loaded reports whether the kernel has loaded what the variant programs. Kernels from 6.17 on may lack the legacy tables.
func (b *Backend) Loaded() bool {
	_, err := legacyTables(rules.IPv4)
	return b.variant == Nft || err == nil
}

// find returns the backend of the variant, by its own names or because it is the host's default, if it has the programs of
// all the families, or with none named of at least one.
func find(ctx context.Context, v Variant, families ...rules.Family) (*Backend, error) {
	prefix := "tables-" + string(v)
	if !present("ip"+prefix+"-restore") && !present("ip6"+prefix+"-restore") {
		if def, err := defaultVariant(ctx); err != nil || def != v {
			return nil, ErrNone
		}
		prefix = "tables"
	}
	b := &Backend{variant: v, tools: map[rules.Family]tools{}}
	var missing []string
	for _, f := range rules.Families {
		programs := map[rules.Family]string{rules.IPv4: "ip", rules.IPv6: "ip6"}[f] + prefix
		if present(programs+"-save") && present(programs+"-restore") {
			b.tools[f] = tools{programs + "-save", programs + "-restore"}
		} else if len(families) == 0 || slices.Contains(families, f) {
			missing = append(missing, programs+"-restore or its "+programs+"-save")
		}
	}
	if len(b.tools) == 0 || len(families) > 0 && len(missing) > 0 {
		return nil, fmt.Errorf("%w (missing: %s)", ErrNone, strings.Join(missing, ", "))
	}
	return b, nil
}

func present(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

func detect(ctx context.Context, legacyTables func(rules.Family) ([]string, error), families []rules.Family) (*Backend, error) {
	names, noLegacy := legacyTables(rules.IPv4)
	names6, _ := legacyTables(rules.IPv6)
	var order []Variant
	if len(names)+len(names6) > 0 {
		order = append(order, Legacy)
	}
	if def, err := defaultVariant(ctx); err == nil && (def == Nft || noLegacy == nil) {
		order = append(order, def)
	}
	var errs []error
	for _, v := range append(order, Nft, Legacy) {
		b, err := find(ctx, v, families...)
		if err == nil {
			return b, nil
		}
		errs = append(errs, err)
	}
	return nil, slices.MaxFunc(errs, func(a, b error) int { return len(a.Error()) - len(b.Error()) }) // it says most
}

// defaultVariant tells what "iptables-restore" on PATH is: by what its symbolic links end in, or, for anything that is
// not one of iptables' own programs, by its version.
func defaultVariant(ctx context.Context) (Variant, error) {
	path, err := exec.LookPath("iptables-restore")
	if err != nil {
		return "", err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	switch filepath.Base(target) {
	case "xtables-nft-multi":
		return Nft, nil
	case "xtables-legacy-multi", "xtables-multi":
		return Legacy, nil
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", path, err)
	}
	if strings.Contains(string(out), "nf_tables") {
		return Nft, nil
	}
	return Legacy, nil
}

// legacyTables lists the legacy tables that the calling thread's namespace has. It fails if the kernel has none loaded.
func legacyTables(f rules.Family) ([]string, error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if f == rules.IPv6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the kernel has no legacy %s tables loaded: %w", f, err)
	}
	return strings.Fields(string(data)), err
}
