// Package iptables programs a Ruleset with the host's iptables, of either variant. It works in the network namespace of
// the calling thread, which the caller has entered and locked.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// Programs are the host's programs of one variant of iptables.
type Programs struct {
	variant Variant
	tools   map[rules.Family]tools
}

// Name returns "iptables-nft" or "iptables-legacy".
func (p *Programs) Name() string { return p.variant.name() }

// undoTimeout bounds the removal of what a failed Apply has done.
const undoTimeout = 5 * time.Second

// Tables are what belongs to detour in each family's tables: chains, and rules in the base chains.
type Tables map[rules.Family]iptext.Save

// Compile returns what a ruleset has in the families' tables.
func Compile(rs rules.Ruleset, families []rules.Family) Tables {
	t := Tables{}
	for _, f := range families {
		t[f] = iptext.SaveOf(rs, f)
	}
	return t
}

// Apply programs all that is wanted of the families or, on an error, nothing. Within a family, each table is one
// transaction. It replaces what an earlier Apply left by the same chains and rules or by those of old, so that the result is
// the same however often it runs. Rules of others stay. The started programs inherit lock, the namespace's lock.
func (p *Programs) Apply(ctx context.Context, lock *os.File, want, old Tables) error {
	possible := Tables{}
	for f, save := range want {
		possible[f] = save.Join(old[f])
	}
	stale, failed := p.existing(ctx, lock, possible)
	if len(failed) > 0 {
		return inOrder("program", failed)
	}
	inputs := map[rules.Family]string{}
	for f, save := range want {
		inputs[f] = save.Restore(stale[f])
	}
	failed = p.restore(ctx, lock, inputs)
	if len(failed) == 0 {
		failed = p.notThere(inputs, want)
	}
	if len(failed) == 0 {
		return nil
	}
	return errors.Join(inOrder("program", failed), p.undo(ctx, lock, want))
}

// notThere finds programs that report success and have done nothing, as a stub of another package does.
func (p *Programs) notThere(inputs map[rules.Family]string, want Tables) map[rules.Family]error {
	failed := map[rules.Family]error{}
	for f, input := range inputs {
		if input == "" || len(want[f].Rules) == 0 {
			continue
		}
		empty, err := p.empty(f, want[f])
		if empty {
			err = fmt.Errorf("%s reports success, but the kernel has none of its tables: replace that program", p.tools[f].restore)
		}
		if err != nil {
			failed[f] = err
		}
	}
	return failed
}

// undo removes what a failed Apply has done, even if the deadline has passed.
func (p *Programs) undo(ctx context.Context, lock *os.File, want Tables) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return p.Remove(ctx, lock, want)
}

// inOrder joins what failed, family by family.
func inOrder(verb string, failed map[rules.Family]error) error {
	var errs []error
	for _, f := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, fmt.Errorf("%s %s rules: %w", verb, f, failed[f]))
	}
	return errors.Join(errs...)
}

// restore runs iptables-restore with each family's input, all at once, and returns what failed.
func (p *Programs) restore(ctx context.Context, lock *os.File, inputs map[rules.Family]string) map[rules.Family]error {
	failed := map[rules.Family]error{}
	running := map[rules.Family]*process{}
	for f, input := range inputs {
		if input == "" {
			continue
		}
		started, err := start(ctx, lock, p.tools[f].restore, input, "--noflush", "--wait="+waitSeconds(ctx))
		if err != nil {
			failed[f] = err
			continue
		}
		running[f] = started
	}
	for f, started := range running {
		if _, err := started.wait(); err != nil {
			failed[f] = err
		}
	}
	return failed
}

// Differences says, one sentence each, where the kernel differs from what is owned, and which rules of others precede it.
func (p *Programs) Differences(ctx context.Context, own Tables) ([]string, error) {
	all, failed := p.saves(ctx, nil, own)
	if len(failed) > 0 {
		return nil, inOrder("list", failed)
	}
	return compare(p.variant == Nft, own, all)
}

// compare says where all that the kernel has of the variant differs from what is owned.
func compare(inNft bool, own, all Tables) ([]string, error) {
	var found []string
	for _, f := range rules.Families {
		if want, ok := own[f]; ok {
			found = append(found, iptext.Differences(f, want, all[f])...)
		}
	}
	more, err := inNftables(inNft, own)
	return append(found, more...), err
}

// inNftables reports what iptables doesn't list: dormant tables and nft's tables.
func inNftables(inNft bool, own Tables) ([]string, error) {
	dormant, err := nft.Dormant(func(f nft.Family, table string) bool {
		family, ok := familyOf(f)
		return inNft && ok && len(own[family].ChainsIn(rules.Table(table))) > 0
	})
	foreign, err2 := nft.Foreign(slices.Collect(maps.Keys(own)), func(f nft.Family, table string) bool {
		return inNft && f != nft.Inet && slices.Contains(rules.Tables, rules.Table(table))
	})
	return append(dormant, foreign...), errors.Join(err, err2)
}

// familyOf is the address family of one of nf_tables' families that iptables-nft uses.
func familyOf(f nft.Family) (family rules.Family, ok bool) {
	switch f {
	case nft.IP:
		return rules.IPv4, true
	case nft.IP6:
		return rules.IPv6, true
	default:
		return 0, false
	}
}

// Works reports whether the programs run at all.
func (p *Programs) Works() error {
	privateLock()
	protocols := map[rules.Family]goiptables.Protocol{rules.IPv4: goiptables.ProtocolIPv4, rules.IPv6: goiptables.ProtocolIPv6}
	for f, t := range p.tools {
		program := strings.TrimSuffix(t.restore, "-restore")
		if _, err := goiptables.New(goiptables.IPFamily(protocols[f]), goiptables.Path(program)); err != nil {
			return fmt.Errorf("start %s: %w", program, err)
		}
	}
	return nil
}

// existing reads which of the owned things each family has.
func (p *Programs) existing(ctx context.Context, lock *os.File, owned Tables) (map[rules.Family]iptext.Save, map[rules.Family]error) {
	all, failed := p.saves(ctx, lock, owned)
	for f, save := range all {
		all[f] = save.Find(owned[f])
	}
	return all, failed
}

// saves runs iptables-save, at the same time, for the families that may have something owned.
func (p *Programs) saves(ctx context.Context, lock *os.File, owned Tables) (map[rules.Family]iptext.Save, map[rules.Family]error) {
	all, failed := map[rules.Family]iptext.Save{}, map[rules.Family]error{}
	running := map[rules.Family]*process{}
	for f, own := range owned {
		empty, err := p.empty(f, own)
		if err != nil {
			failed[f] = err
			continue
		}
		if empty {
			continue
		}
		started, err := start(ctx, lock, p.tools[f].save, "")
		if err != nil {
			failed[f] = err
			continue
		}
		running[f] = started
	}
	for f, started := range running {
		save, err := started.saved(owned[f])
		if err != nil {
			failed[f] = err
			continue
		}
		all[f] = save
	}
	return all, failed
}

// saved waits for iptables-save and returns what it has listed. It fails if iptables-save can't list a table that own is in.
func (p *process) saved(own iptext.Save) (iptext.Save, error) {
	out, err := p.wait()
	if err != nil {
		return iptext.Save{}, err
	}
	for _, table := range incompatible(out) {
		if len(own.ChainsIn(rules.Table(table))) > 0 {
			return iptext.Save{}, fmt.Errorf("table %s has a rule of nft's that iptables can't list: delete it with nft", table)
		}
	}
	return iptext.ParseSave(out)
}

// incompatible are the tables that iptables-nft-save can't list, because nft gave them rules that iptables has no words for.
func incompatible(saved string) []string {
	var tables []string
	for line := range strings.Lines(saved) {
		_, rest, _ := strings.Cut(line, "Table `")
		if table, _, ok := strings.Cut(rest, "' is incompatible"); ok {
			tables = append(tables, table)
		}
	}
	return tables
}

// empty reports whether the namespace has none of the tables that own is in, without a program: those of legacy iptables make the
// tables that they look at.
func (p *Programs) empty(f rules.Family, own iptext.Save) (bool, error) {
	list := nftTables
	if p.variant == Legacy {
		list = legacy.Tables
	}
	names, err := list(f)
	if absent(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(names, func(t string) bool { return len(own.ChainsIn(rules.Table(t))) > 0 }), nil
}

// absent reports whether the error says that the kernel has no such tables, rather than that it could not tell. nfnetlink answers
// EINVAL if there is no nf_tables.
func absent(err error) bool {
	return slices.ContainsFunc([]error{fs.ErrNotExist, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL}, func(no error) bool { return errors.Is(err, no) })
}

// nftTables lists none if the kernel has no nf_tables.
func nftTables(f rules.Family) ([]string, error) {
	names, err := nft.Tables(nft.ProtocolOf(f))
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, nft.Explain(err)
	}
	return names, nil
}
