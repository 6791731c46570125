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
	"github.com/detour-cni/detour/pkg/verify"
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
type Owned map[rules.Family]rules.Save

// Owning returns what a ruleset has in the families.
func Owning(rs rules.Ruleset, families []rules.Family) Owned {
	own := Owned{}
	for _, f := range families {
		own[f] = rs.Save(f)
	}
	return own
}

// Apply programs what is wanted of the families, and all of them or none; within a family, each table is one transaction.
// What an earlier Apply left, by the same chains and rules and by those of old, is replaced, so that the result is the
// same however often it runs; rules of others stay. lock is the namespace's lock, which the started programs inherit.
func (b *Backend) Apply(ctx context.Context, lock *os.File, want, old Owned) error {
	done := Owned{}
	for _, f := range rules.Families {
		save, ok := want[f]
		if !ok {
			continue
		}
		done[f] = save
		err := b.replace(ctx, lock, f, save, save.Join(old[f]))
		if err == nil {
			continue
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("program %s rules: %w", f, err), b.Remove(undo, lock, done))
	}
	return nil
}

// Remove takes what is owned out of the families. What is not there is no error.
func (b *Backend) Remove(ctx context.Context, lock *os.File, owned Owned) error {
	var errs []error
	for _, f := range rules.Families {
		if own, ok := owned[f]; ok {
			if err := b.replace(ctx, lock, f, rules.Save{}, own); err != nil {
				errs = append(errs, fmt.Errorf("remove %s rules: %w", f, err))
			}
		}
	}
	return errors.Join(errs...)
}

// replace puts what is wanted in the place of what is owned.
func (b *Backend) replace(ctx context.Context, lock *os.File, f rules.Family, want, own rules.Save) error {
	have, err := b.save(ctx, lock, f, own)
	if err != nil {
		return err
	}
	input := want.Restore(have.Owned(own))
	if input == "" {
		return nil
	}
	_, err = b.run(ctx, lock, b.tools[f].restore, input, "--noflush", "--wait="+waitSeconds(ctx))
	return err
}

// Differences says, one sentence each, where the kernel differs from what is owned.
func (b *Backend) Differences(own Owned) ([]string, error) {
	var found []string
	for _, f := range rules.Families {
		want, ok := own[f]
		if !ok {
			continue
		}
		got, err := b.List(f, want)
		if err != nil {
			return nil, err
		}
		found = append(found, verify.Differences(f, want, got)...)
	}
	return found, nil
}

// List reads of the family's tables the chains that own has and the base chains that it has rules in.
func (b *Backend) List(f rules.Family, own rules.Save) (rules.Save, error) {
	ipt, err := b.client(f)
	if err != nil {
		return rules.Save{}, err
	}
	var s rules.Save
	for _, t := range rules.Tables {
		chains := own.ChainsIn(t)
		if len(chains) == 0 {
			continue
		}
		there, err := ipt.ListChains(string(t))
		if err != nil {
			return rules.Save{}, fmt.Errorf("list %s chains of table %s: %w", f, t, err)
		}
		for _, c := range chains {
			if !slices.Contains(there, c.Name) {
				continue
			}
			lines, err := ipt.List(string(t), c.Name)
			if err != nil {
				return rules.Save{}, fmt.Errorf("list %s chain %s of table %s: %w", f, c.Name, t, err)
			}
			s = s.Join(rules.ParseList(c, lines))
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

// save reads the family's tables. A namespace without any of the legacy tables that own is in is known to be empty
// without asking a program.
func (b *Backend) save(ctx context.Context, lock *os.File, f rules.Family, own rules.Save) (rules.Save, error) {
	if b.variant == Legacy {
		names, err := legacyTables(f)
		if err == nil && !slices.ContainsFunc(names, func(t string) bool { return len(own.ChainsIn(rules.Table(t))) > 0 }) {
			return rules.Save{}, nil
		}
	}
	out, err := b.run(ctx, lock, b.tools[f].save, "")
	if err != nil {
		return rules.Save{}, err
	}
	return rules.ParseSave(out)
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
