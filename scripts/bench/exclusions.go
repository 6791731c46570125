package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// many is the length of a long list of exclusions.
const many = 10_000

// excluded returns n addresses that the bench never connects to. No two are adjacent, so that they cannot be merged.
func excluded(n int) []redirect.Range {
	list := make([]redirect.Range, n)
	addr := netip.MustParseAddr("198.18.0.0")
	for i := range list {
		list[i] = redirect.Range{Prefix: netip.PrefixFrom(addr, 32), Origin: "a long list"}
		addr = addr.Next().Next()
	}
	return list
}

// excluding is the pod's ruleset with n excluded ranges and no others.
func (l *lab) excluding(n int) (rules.Ruleset, error) {
	policy, err := l.policy()
	if err != nil {
		return rules.Ruleset{}, err
	}
	policy.Outbound.ExcludeRanges = excluded(n)
	return policy.Ruleset(), nil
}

// program programs a pod for IPv4 within this process.
func program(ctx context.Context, ns *nettest.Namespace, backend string, rs rules.Ruleset) error {
	pod, err := netns.Open(ns.Path())
	if err != nil {
		return err
	}
	defer pod.Close()
	families := []rules.Family{rules.IPv4}
	return pod.Do(func() error {
		if backend == nftables.Name {
			return nftables.Apply(nftables.Compile(rs, families))
		}
		for _, b := range iptables.Installed(ctx) {
			if b.Name() == backend {
				return b.Apply(ctx, nil, iptables.Compile(rs, families), nil)
			}
		}
		return fmt.Errorf("there is no %s", backend)
	})
}

// programmings is how often each backend programs a long list.
const programmings = 11

// programmingTimes compares programming a long list with nft -f of the same set alone.
func programmingTimes(ctx context.Context, l *lab) ([]row, error) {
	rs, err := l.excluding(many)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(l.path("set.nft"), []byte(setText(excluded(many))), 0o600); err != nil {
		return nil, err
	}
	const alone = "nft -f"
	times := map[string][]time.Duration{}
	for range programmings {
		for _, backend := range l.present(append([]string{alone}, backends...)...) {
			took, err := inNewPod(func(ns *nettest.Namespace) error {
				if backend == alone {
					_, err := output(ns, "nft", "-f", l.path("set.nft"))
					return err
				}
				return program(ctx, ns, backend, rs)
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", backend, err)
			}
			times[backend] = append(times[backend], took)
		}
	}
	const what = "programming 10,000 exclusions, "
	rows := l.missing("5", what)
	for _, backend := range l.present(backends...) {
		var most limit
		if backend == nftables.Name {
			most.value = 3
		}
		rows = append(rows, compared("5", what+backend, median(times[alone]), median(times[backend]), most))
	}
	return rows, nil
}

// inNewPod returns how long do takes in a new pod.
func inNewPod(do func(*nettest.Namespace) error) (time.Duration, error) {
	var took time.Duration
	err := withPods(1, func(pods []*nettest.World) error {
		began := time.Now()
		err := do(pods[0].Pod)
		took = time.Since(began)
		return err
	})
	return took, err
}

// setText is an nftables table that holds nothing but a set of the ranges.
func setText(ranges []redirect.Range) string {
	elements := make([]string, len(ranges))
	for i, r := range ranges {
		elements[i] = r.Prefix.String()
	}
	return "table inet alone {\n\tset excluded {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { " + strings.Join(elements, ", ") + " }\n\t}\n}\n"
}
