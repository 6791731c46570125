// Package iptables programs a Ruleset with the host's iptables, of either variant. It works in the network namespace of
// the calling thread, which the caller has entered and locked.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/detour-cni/detour/pkg/backend/internal/nft"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/rules"
)

// Backend is one variant of iptables.
type Backend struct {
	variant Variant
	tools   map[rules.Family]tools
}

// Name returns "iptables-nft" or "iptables-legacy".
func (b *Backend) Name() string { return "iptables-" + string(b.variant) }

// undoTimeout bounds the removal of what a failed Apply has done; the caller's deadline may have passed by then.
const undoTimeout = 5 * time.Second

// Owned is what belongs to detour in each family: chains, and rules in the base chains.
type Owned map[rules.Family]iptext.Save

// Owning returns what a ruleset has in the families.
func Owning(rs rules.Ruleset, families []rules.Family) Owned {
	own := Owned{}
	for _, f := range families {
		own[f] = iptext.SaveOf(rs, f)
	}
	return own
}

// Apply programs what is wanted of the families, and all of them or none; within a family, each table is one transaction.
// What an earlier Apply left, by the same chains and rules and by those of old, is replaced, so that the result is the
// same however often it runs; rules of others stay. lock is the namespace's lock, which the started programs inherit.
func (b *Backend) Apply(ctx context.Context, lock *os.File, want, old Owned) error {
	may := Owned{}
	for f, save := range want {
		may[f] = save.Join(old[f])
	}
	stale, failed := b.there(ctx, lock, may)
	if len(failed) > 0 {
		return inOrder("program", failed)
	}
	inputs := map[rules.Family]string{}
	for f, save := range want {
		inputs[f] = save.Restore(stale[f])
	}
	failed = b.restore(ctx, lock, inputs)
	if len(failed) == 0 {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return errors.Join(inOrder("program", failed), b.Remove(undo, lock, want))
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
func (b *Backend) restore(ctx context.Context, lock *os.File, inputs map[rules.Family]string) map[rules.Family]error {
	failed := map[rules.Family]error{}
	running := map[rules.Family]*process{}
	for f, input := range inputs {
		if input == "" {
			continue
		}
		p, err := start(ctx, lock, b.tools[f].restore, input, "--noflush", "--wait="+waitSeconds(ctx))
		if err != nil {
			failed[f] = err
			continue
		}
		running[f] = p
	}
	for f, p := range running {
		if _, err := p.wait(); err != nil {
			failed[f] = err
		}
	}
	return failed
}

// Differences says, one sentence each, where the kernel differs from what is owned, and what of others' is ahead of it.
func (b *Backend) Differences(ctx context.Context, own Owned) ([]string, error) {
	all, failed := b.saves(ctx, nil, own)
	if len(failed) > 0 {
		return nil, inOrder("list", failed)
	}
	var found []string
	for _, f := range rules.Families {
		if want, ok := own[f]; ok {
			found = append(found, iptext.Differences(f, want, all[f])...)
		}
	}
	more, err := b.inNftables(own)
	return append(found, more...), err
}

// inNftables says what there is in nf_tables that iptables doesn't list.
func (b *Backend) inNftables(own Owned) ([]string, error) {
	asleep, err := nft.Dormant(func(f nft.Family, table string) bool {
		return b.variant == Nft && len(own[familyOf[f]].ChainsIn(rules.Table(table))) > 0
	})
	ahead, err2 := nft.Foreign(slices.Collect(maps.Keys(own)), func(f nft.Family, table string) bool {
		return b.variant == Nft && f != nft.Inet && slices.Contains(rules.Tables, rules.Table(table))
	})
	return append(asleep, ahead...), errors.Join(err, err2)
}

// familyOf are the families of nf_tables that iptables-nft uses.
var familyOf = map[nft.Family]rules.Family{nft.IP: rules.IPv4, nft.IP6: rules.IPv6}

// Works reports whether the programs that there are run at all.
func (b *Backend) Works() error {
	privateLock()
	protocols := map[rules.Family]goiptables.Protocol{rules.IPv4: goiptables.ProtocolIPv4, rules.IPv6: goiptables.ProtocolIPv6}
	for f, t := range b.tools {
		program := strings.TrimSuffix(t.restore, "-restore")
		if _, err := goiptables.New(goiptables.IPFamily(protocols[f]), goiptables.Path(program)); err != nil {
			return fmt.Errorf("start %s: %w", program, err)
		}
	}
	return nil
}

// there reads what of the owned things each family has.
func (b *Backend) there(ctx context.Context, lock *os.File, owned Owned) (map[rules.Family]iptext.Save, map[rules.Family]error) {
	all, failed := b.saves(ctx, lock, owned)
	for f, save := range all {
		all[f] = save.Owned(owned[f])
	}
	return all, failed
}

// saves reads all that iptables-save lists of the families that may have something owned, of all at once.
func (b *Backend) saves(ctx context.Context, lock *os.File, owned Owned) (map[rules.Family]iptext.Save, map[rules.Family]error) {
	all, failed := map[rules.Family]iptext.Save{}, map[rules.Family]error{}
	running := map[rules.Family]*process{}
	for f, own := range owned {
		if b.empty(f, own) {
			continue
		}
		p, err := start(ctx, lock, b.tools[f].save, "")
		if err != nil {
			failed[f] = err
			continue
		}
		running[f] = p
	}
	for f, p := range running {
		save, err := p.saved(owned[f])
		if err != nil {
			failed[f] = err
			continue
		}
		all[f] = save
	}
	return all, failed
}

// notIptables is what iptables-nft-save says of a table that nft gave a rule which iptables has no words for.
var notIptables = regexp.MustCompile("Table `(.*)' is incompatible")

// saved waits for iptables-save and returns what it has listed. It is an error if it can't list a table that own is in.
func (p *process) saved(own iptext.Save) (iptext.Save, error) {
	out, err := p.wait()
	if err != nil {
		return iptext.Save{}, err
	}
	for _, m := range notIptables.FindAllStringSubmatch(out, -1) {
		if len(own.ChainsIn(rules.Table(m[1]))) > 0 {
			return iptext.Save{}, fmt.Errorf("table %s has a rule of nft's that iptables can't list: delete it with nft", m[1])
		}
	}
	return iptext.ParseSave(out)
}

// empty reports whether the namespace is known, without asking a program, to have none of the tables that own is in.
func (b *Backend) empty(f rules.Family, own iptext.Save) bool {
	list := nftTables
	if b.variant == Legacy {
		list = legacyTables
	}
	names, err := list(f)
	return err == nil && !slices.ContainsFunc(names, func(t string) bool { return len(own.ChainsIn(rules.Table(t))) > 0 })
}

func nftTables(f rules.Family) ([]string, error) { return nft.Tables(nft.ProtocolOf(f)) }

// waitSeconds is for iptables before 1.8.6, which know no XTABLES_LOCKFILE and wait for the host's lock.
func waitSeconds(ctx context.Context) string {
	deadline, ok := ctx.Deadline()
	if !ok {
		return "10"
	}
	return strconv.Itoa(int(math.Max(1, math.Floor(time.Until(deadline).Seconds()))))
}

// process is a program of iptables that runs.
type process struct {
	ctx            context.Context
	cmd            *exec.Cmd
	stdin          string
	stdout, stderr bytes.Buffer
}

// errNoProgram says that Detect was not asked for what is to be done.
var errNoProgram = errors.New("iptables has no programs for this family here: install the package iptables")

// start starts a program; lock is nil for one that changes nothing.
func start(ctx context.Context, lock *os.File, path, stdin string, args ...string) (*process, error) {
	if path == "" {
		return nil, errNoProgram
	}
	privateLock()
	p := &process{ctx: ctx, cmd: exec.CommandContext(ctx, path, args...), stdin: stdin}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader(stdin), &p.stdout, &p.stderr
	if lock != nil {
		p.cmd.ExtraFiles = []*os.File{lock} // held until the program ends, even if detour is killed
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p, p.failed(p.cmd.Start())
}

// wait waits for the program's end and returns what it has printed.
func (p *process) wait() (string, error) {
	err := p.failed(p.cmd.Wait())
	return p.stdout.String(), err
}

// failed says in one line what an error of the program means.
func (p *process) failed(err error) error {
	switch name := filepath.Base(p.cmd.Path); {
	case err == nil:
		return nil
	case p.ctx.Err() != nil:
		return fmt.Errorf("%s: %w", name, p.ctx.Err())
	default:
		return fmt.Errorf("%s: %w: %s", name, err, explain(p.stderr.String(), p.stdin))
	}
}

// privateLock keeps the legacy programs off the host's /run/xtables.lock, for which every pod start would wait. The
// namespace is locked by the caller, so any file that no other process locks will do.
func privateLock() { os.Setenv("XTABLES_LOCKFILE", "/proc/self/stat") }

// explain puts what a program said into one line, with the line of its input that it complained about.
func explain(stderr, stdin string) string {
	said, _, _ := strings.Cut(strings.Join(strings.Fields(stderr), " "), " Try `") // the way to the manual
	m := regexp.MustCompile(`line:? (\d+)`).FindStringSubmatch(said)
	if m == nil {
		return said
	}
	n, err := strconv.Atoi(m[1])
	lines := strings.Split(stdin, "\n")
	if err != nil || n < 1 || n > len(lines) {
		return said
	}
	return fmt.Sprintf("%s (%s)", said, lines[n-1])
}
