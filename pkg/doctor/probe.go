package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/originaldst"
	"github.com/detour-cni/detour/pkg/rules"
)

// All of this works in the calling thread's network namespace, which is new and empty.

// patience bounds one attempt to program a feature, unless the Doctor has another. An ADD takes milliseconds.
var patience = 5 * time.Second

// attempt programs rules, wants them listed as they were programmed, calls then, and removes them.
func attempt(ctx context.Context, p *backend.Program, then func() error) error {
	var r attachment.Record
	p.Keep(&r)
	if err := p.Apply(ctx, nil); err != nil {
		return err
	}
	found, err := backend.Differences(ctx, r)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%s programs the rules, but the kernel lists something else: %s", p.Variant(), found[0])
	}
	if err == nil && then != nil {
		err = then()
	}
	return errors.Join(err, backend.Remove(ctx, nil, r))
}

// taken is the backend that ADD ends up with, and why that is not the preferred one.
type taken struct {
	variant string
	because error
}

// add programs as ADD does: with the backend that is chosen or, where that fails, with another.
func (p plan) add(ctx context.Context, rs rules.Ruleset, families []rules.Family) (taken, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	program, err := backend.Prepare(ctx, p.choice, rs, families)
	if err != nil {
		return taken{}, err
	}
	if err = attempt(ctx, program, nil); err == nil {
		return taken{program.Variant(), whyNotIPTables(ctx, p.choice, program, rs, families)}, nil
	}
	if ctx.Err() != nil {
		return taken{}, err
	}
	other := program.Fallback(ctx)
	if other == nil {
		return taken{}, err
	}
	return taken{other.Variant(), err}, attempt(ctx, other, nil)
}

func whyNotIPTables(ctx context.Context, choice string, p *backend.Program, rs rules.Ruleset, families []rules.Family) error {
	if choice != backend.Auto || p.Choice() == backend.IPTables {
		return nil
	}
	p, err := backend.Prepare(ctx, backend.IPTables, rs, families)
	if err != nil {
		return err
	}
	return p.Drawback()
}

// findFeatures tries every feature with every variant that the host has.
func findFeatures(ctx context.Context, families []rules.Family) []Feature {
	plain := joined(slices.DeleteFunc(slices.Clone(features), func(f feature) bool { return f.rs.Gated() }))
	detect, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var all []Feature
	for _, installed := range backend.Installed(detect) {
		for _, family := range families {
			v := variant{Variant: installed, family: family}
			v.failed = v.attempt(ctx, plain, nil)
			for _, f := range features {
				if found, ok := v.find(ctx, f); ok {
					all = append(all, found)
				}
			}
		}
	}
	return all
}

// variant is one of a backend's, in one family. failed is why it can't program all features at once; nil if it can.
type variant struct {
	backend.Variant
	family rules.Family
	failed error
}

// find tries one feature; ok is false if the variant is not for it.
func (v *variant) find(ctx context.Context, f feature) (found Feature, ok bool) {
	p, err := v.Prepare(f.rs, []rules.Family{v.family})
	if err != nil {
		return found, false
	}
	switch {
	case errors.Is(v.failed, context.DeadlineExceeded): // it hangs
		err = v.failed
	case f.name == Redirected:
		err = v.attempt(ctx, redirection, func() error { return connect(v.family) })
	case v.failed != nil || f.rs.Gated():
		err = v.attempt(ctx, f.rs, nil)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		v.failed = err
	}
	n := f.needOf(p.Choice())
	found = Feature{Name: f.name, Backend: p.Variant(), Family: v.family, Present: err == nil, Result: Fine, For: f.use, Needs: n.what, Since: n.since}
	if err != nil {
		found.Error, found.Errno, found.Do = err.Error(), errnoOf(err), n.remedy()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		found.Do = fmt.Sprintf("find out what takes longer than %s, or try again with a longer --patience on a slow node", patience)
	}
	return found, true
}

func (v variant) attempt(ctx context.Context, rs rules.Ruleset, then func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p, err := v.Prepare(rs, []rules.Family{v.family})
	if err != nil {
		return err
	}
	return attempt(ctx, p, then)
}

func (f feature) needOf(choice string) need {
	if choice == backend.IPTables {
		return f.xt
	}
	return f.nft
}

func (n need) remedy() string {
	load := ""
	if n.module != "" {
		load = "modprobe " + n.module + "; if there is no such module, "
	}
	return fmt.Sprintf("%stake a kernel from %s on with %s, or another backend", load, n.since, n.what)
}

// errnoOf is the kernel's error by its name, "" if a program hid it.
func errnoOf(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return ""
}

// The connection that is made: to a port where nobody listens, by way of one where the test listens.
const nobody, listener = 9, 15001

var redirection = of(nat(rules.Output, rules.Redirect(listener), rules.TCP, port(nobody, false)))

// connect wants a connection to be redirected, and the kernel to know where it was going.
func connect(f rules.Family) error {
	address := netip.MustParseAddr("127.0.0.1")
	if f == rules.IPv6 {
		address = netip.IPv6Loopback()
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(address, listener)))
	if err != nil {
		return fmt.Errorf("listen on lo: %w", err)
	}
	defer l.Close() //nolint:errcheck // it ends with the namespace
	to := netip.AddrPortFrom(address, nobody)
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		return fmt.Errorf("a connection is not redirected: %w", err)
	}
	defer conn.Close()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	accepted, err := l.AcceptTCP()
	if err != nil {
		return fmt.Errorf("a redirected connection does not arrive: %w", err)
	}
	defer accepted.Close()
	if was, err := originaldst.Of(accepted); err != nil || was != to {
		return fmt.Errorf("the kernel does not tell the proxy where a redirected connection was going: %w", cmpErr(err, was, to))
	}
	return nil
}

func cmpErr(err error, was, to netip.AddrPort) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("it says %s, not %s", was, to)
}

// loopbackUp brings lo up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
