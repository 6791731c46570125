// Package iptables programs a Ruleset with the host's iptables, of either variant. It works in the network namespace of
// the calling thread, which the caller has entered and locked.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// Apply programs the ruleset for the families: each in one transaction, and all of them or none. What an earlier Apply
// left is replaced, so that the result is the same however often it runs; rules of others stay. lock is the namespace's
// lock, which the started programs inherit.
func (b *Backend) Apply(ctx context.Context, lock *os.File, rs rules.Ruleset, families []rules.Family) error {
	for i, f := range families {
		err := b.apply(ctx, lock, rs, f)
		if err == nil {
			continue
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return errors.Join(
			fmt.Errorf("program %s rules: %w", f, err),
			b.Remove(undo, lock, rs.Chains, families[:i]))
	}
	return nil
}

func (b *Backend) apply(ctx context.Context, lock *os.File, rs rules.Ruleset, f rules.Family) error {
	have, err := b.save(ctx, lock, f)
	if err != nil {
		return err
	}
	return b.restore(ctx, lock, f, rs.Restore(f, false, have.JumpsInto(rs.Chains)))
}

// Remove takes the chains and every jump into them out of the families, each in one transaction. What is not there is
// no error.
func (b *Backend) Remove(ctx context.Context, lock *os.File, chains []rules.Chain, families []rules.Family) error {
	var errs []error
	for _, f := range families {
		if err := b.remove(ctx, lock, chains, f); err != nil {
			errs = append(errs, fmt.Errorf("remove %s rules: %w", f, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Backend) remove(ctx context.Context, lock *os.File, chains []rules.Chain, f rules.Family) error {
	have, err := b.save(ctx, lock, f)
	if err != nil {
		return err
	}
	input := have.Removal(chains)
	if input == "" {
		return nil
	}
	return b.restore(ctx, lock, f, input)
}

// List reads the base chains that redirection hooks into and those of chains that exist.
func (b *Backend) List(f rules.Family, chains []rules.Chain) (rules.Save, error) {
	ipt, err := b.client(f)
	if err != nil {
		return rules.Save{}, err
	}
	names, err := ipt.ListChains(string(rules.Nat))
	if err != nil {
		return rules.Save{}, fmt.Errorf("list %s chains: %w", f, err)
	}
	var s rules.Save
	for _, c := range append([]rules.Chain{{Table: rules.Nat, Name: rules.Prerouting}, {Table: rules.Nat, Name: rules.Output}}, chains...) {
		if !slices.Contains(names, c.Name) {
			continue
		}
		lines, err := ipt.List(string(c.Table), c.Name)
		if err != nil {
			return rules.Save{}, fmt.Errorf("list %s chain %s: %w", f, c.Name, err)
		}
		for _, line := range lines {
			switch {
			case strings.HasPrefix(line, "-N"):
				s.Chains = append(s.Chains, c)
			case strings.HasPrefix(line, "-A"):
				s.Rules = append(s.Rules, rules.SavedRule{Chain: c, Line: line})
			}
		}
	}
	return s, nil
}

// Works reports whether the programs of both families run at all.
func (b *Backend) Works() error {
	for _, f := range rules.Families {
		if _, err := b.client(f); err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) client(f rules.Family) (*goiptables.IPTables, error) {
	privateLock()
	protocol := goiptables.ProtocolIPv4
	if f == rules.IPv6 {
		protocol = goiptables.ProtocolIPv6
	}
	ipt, err := goiptables.New(goiptables.IPFamily(protocol), goiptables.Path(b.tools[f].iptables))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", b.tools[f].iptables, err)
	}
	return ipt, nil
}

// save reads the family's nat table. A namespace without a legacy table is known to be empty without asking a program,
// which would make the table.
func (b *Backend) save(ctx context.Context, lock *os.File, f rules.Family) (rules.Save, error) {
	if b.variant == Legacy {
		if names, err := legacyTables(f); err == nil && !slices.Contains(names, string(rules.Nat)) {
			return rules.Save{}, nil
		}
	}
	out, err := b.run(ctx, lock, b.tools[f].save, "", "-t", string(rules.Nat))
	if err != nil {
		return rules.Save{}, err
	}
	return rules.ParseSave(out)
}

func (b *Backend) restore(ctx context.Context, lock *os.File, f rules.Family, input string) error {
	_, err := b.run(ctx, lock, b.tools[f].restore, input, "--noflush", "--wait="+waitSeconds(ctx))
	return err
}

// waitSeconds is for iptables before 1.8.6, which know no XTABLES_LOCKFILE and wait for the host's lock.
func waitSeconds(ctx context.Context) string {
	deadline, ok := ctx.Deadline()
	if !ok {
		return "10"
	}
	return strconv.Itoa(int(math.Max(1, math.Floor(time.Until(deadline).Seconds()))))
}

func (b *Backend) run(ctx context.Context, lock *os.File, path, stdin string, args ...string) (string, error) {
	privateLock()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.ExtraFiles = []*os.File{lock} // held until the program ends, even if detour is killed
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(path), ctx.Err())
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(path), err, explain(stderr.String(), stdin))
	}
	return stdout.String(), nil
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
