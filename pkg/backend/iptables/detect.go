package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// Variant is one of the two iptables that a host may have.
type Variant string

// Nft programs nf_tables. Legacy has tables of its own.
const (
	Nft    Variant = "nft"
	Legacy Variant = "legacy"
)

var variants = []Variant{Nft, Legacy}

// name is what records and logs call the variant.
func (v Variant) name() string { return Choice + "-" + string(v) }

// tools are the programs of one variant and family.
type tools struct{ save, restore string }

// ErrNone says that the host has no usable iptables.
var ErrNone = errors.New("no iptables-restore with its iptables-save, neither nft nor legacy, is on PATH: install the package iptables")

// errAbsent says that a variant has none of its programs, rather than some.
var errAbsent = fmt.Errorf("%w", ErrNone)

// Detect picks the variant for the calling thread's network namespace: legacy if the namespace has legacy tables already,
// else the host's default, which is what "iptables-restore" on PATH is, else the one that is installed. A variant that the kernel
// has nothing for comes last. It fails if the programs for one of the families are missing or, with no family named, those for
// both. It adds no rule, takes no lock and starts no program, unless "iptables-restore" is a script, which it asks for its version.
func Detect(ctx context.Context, families ...rules.Family) (*Programs, error) {
	return detect(ctx, kernel{legacy.Tables, nft.Works}, families)
}

// Installed returns the programs of each variant that the host has, whatever the namespace uses.
func Installed(ctx context.Context) []*Programs {
	var all []*Programs
	host := defaultOf(ctx)
	for _, v := range variants {
		if p, err := find(host, v); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// loaded fails if the kernel lacks, or has not loaded, what the variant programs. Kernels from 6.17 on may lack the legacy tables.
func (p *Programs) loaded() error {
	if p.variant == Nft {
		return nft.Works()
	}
	_, err := legacy.Tables(rules.IPv4)
	return err
}

// defaultOf asks for the host's default once, and only if it is needed.
func defaultOf(ctx context.Context) func() (Variant, error) {
	return sync.OnceValues(func() (Variant, error) { return defaultVariant(ctx) })
}

// find returns the variant's programs, by its own names or as the host's default. It fails if those of one of the families
// are missing or, with no family named, those of both.
func find(host func() (Variant, error), v Variant, families ...rules.Family) (*Programs, error) {
	tables := "tables-" + string(v)
	if !present("ip"+tables+"-restore") && !present("ip6"+tables+"-restore") {
		def, err := host()
		switch {
		case errors.Is(err, exec.ErrNotFound), err == nil && def != v:
			return nil, errAbsent
		case err != nil:
			return nil, fmt.Errorf("%w (%w)", ErrNone, err)
		}
		tables = "tables"
	}
	p := &Programs{variant: v, tools: map[rules.Family]tools{}}
	var missing []string
	for _, f := range rules.Families {
		name := prefix(f) + tables
		if present(name+"-save") && present(name+"-restore") {
			p.tools[f] = tools{name + "-save", name + "-restore"}
		} else if len(families) == 0 || slices.Contains(families, f) {
			missing = append(missing, name+"-restore or its "+name+"-save")
		}
	}
	if len(p.tools) == 0 || len(families) > 0 && len(missing) > 0 {
		return nil, fmt.Errorf("%w (missing: %s)", ErrNone, strings.Join(missing, ", "))
	}
	return p, nil
}

// prefix begins the names of a family's programs.
func prefix(f rules.Family) string {
	if f == rules.IPv6 {
		return "ip6"
	}
	return "ip"
}

func present(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// kernel is what the kernel says of the two variants.
type kernel struct {
	legacyTables func(rules.Family) ([]string, error)
	nftWorks     func() error
}

func detect(ctx context.Context, k kernel, families []rules.Family) (*Programs, error) {
	names, noLegacy := k.legacyTables(rules.IPv4)
	names6, _ := k.legacyTables(rules.IPv6)
	otherwise := variants
	works := map[Variant]bool{Nft: true, Legacy: noLegacy == nil}
	if absent(k.nftWorks()) { // the programs of legacy load their tables themselves
		works[Nft], otherwise = false, []Variant{Legacy, Nft}
	}
	var order []Variant
	if len(names)+len(names6) > 0 {
		order = append(order, Legacy)
	}
	host := defaultOf(ctx)
	if def, err := host(); err == nil && works[def] {
		order = append(order, def)
	}
	reason := errAbsent
	for _, v := range append(order, otherwise...) {
		p, err := find(host, v, families...)
		if err == nil {
			return p, nil
		}
		if errors.Is(reason, errAbsent) { // a variant that is incomplete says more
			reason = err
		}
	}
	return nil, reason
}

// defaultVariant tells which variant "iptables-restore" on PATH is: by the target of its symbolic links or, if that is not
// one of iptables' own programs, by its version.
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
	out, err := versionOf(ctx, path)
	if err != nil {
		return "", err
	}
	if strings.Contains(out, "nf_tables") {
		return Nft, nil
	}
	return Legacy, nil
}

// versionOf asks a program for its version. If it hangs, two thirds of the time are left for another backend.
func versionOf(ctx context.Context, path string) (string, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/3)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = waitDelay
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("ask %s for its version: %w", path, ctx.Err())
	case err != nil:
		return "", fmt.Errorf("ask %s for its version: %w", path, err)
	case !isVersion.Match(out):
		return "", fmt.Errorf("ask %s for its version: it says %.40q, which is none of iptables", path, out)
	}
	return string(out), nil
}

// isVersion is what every iptables says, such as "iptables-restore v1.8.9 (nf_tables)".
var isVersion = regexp.MustCompile(`^ip6?tables(-[a-z-]+)? v[0-9]`)

// waitDelay is how long a program's children may keep its output open after it was killed.
const waitDelay = 2 * time.Second
