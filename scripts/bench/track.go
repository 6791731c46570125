package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

// Tracks without a backend show which part of the cost is not due to detour's rules.
const (
	nothing    = "no rules at all"
	tracking   = "connection tracking alone"
	threeRules = "three rules"
)

// exclusionCounts are the lengths of the lists of exclusions.
var exclusionCounts = []int{0, 100, 1000, many}

// track is a pod in which connections are made.
type track struct {
	rules      string // a backend or one of the above
	inbound    bool   // the client is outside the pod
	exclusions int
}

func (t track) String() string {
	return fmt.Sprintf("%s with %d exclusions, %s", t.rules, t.exclusions, t.direction())
}

func (t track) direction() string {
	if t.inbound {
		return "in"
	}
	return "out"
}

// tracks are all that are compared.
func (l *lab) tracks() []track {
	var all []track
	for _, inbound := range []bool{false, true} {
		for _, rules := range append([]string{nothing, tracking, threeRules}, l.present(backends...)...) {
			all = append(all, track{rules: rules, inbound: inbound})
		}
	}
	for _, backend := range l.present(backends...) {
		for _, n := range exclusionCounts[1:] {
			all = append(all, track{rules: backend, exclusions: n})
		}
	}
	return all
}

// lay programs a track's rules.
func (l *lab) lay(ctx context.Context, t track, ns *nettest.Namespace) error {
	switch t.rules {
	case nothing:
		return nil
	case tracking, threeRules:
		file := l.path("rules.nft")
		if err := os.WriteFile(file, []byte(tables[t.rules]), 0o600); err != nil {
			return err
		}
		_, err := output(ns, "nft", "-f", file)
		return err
	}
	rs, err := l.excluding(t.exclusions)
	if err != nil {
		return err
	}
	return program(ctx, ns, t.rules, rs)
}

// tables hold the fewest rules that track connections, and that redirect all except the proxy's own and those within the pod.
var tables = map[string]string{
	tracking: `table ip bench {
	chain in { type filter hook prerouting priority filter; ct state established accept; }
	chain out { type filter hook output priority filter; ct state established accept; }
}`,
	threeRules: `table ip bench {
	chain in {
		type nat hook prerouting priority dstnat
		iif lo accept
		tcp dport 15003 accept
		meta l4proto tcp redirect to :15003
	}
	chain out {
		type nat hook output priority -100
		ip daddr 127.0.0.1 accept
		meta skuid 1500 accept
		meta l4proto tcp redirect to :15001
	}
}`,
}

// port is the proxy's port.
func (t track) port() int {
	if t.inbound {
		return inboundPort
	}
	return proxyPort
}

// destination is the client's. If the track redirects, only a redirected connection reaches the proxy's port.
func (t track) destination() *unix.SockaddrInet4 {
	switch {
	case t.rules == nothing || t.rules == tracking:
		return &unix.SockaddrInet4{Addr: nettest.PodIPv4.As4(), Port: t.port()}
	case t.inbound:
		return &unix.SockaddrInet4{Addr: nettest.PodIPv4.As4(), Port: 80}
	default:
		return &unix.SockaddrInet4{Addr: nettest.OutsideIPv4.As4(), Port: 80}
	}
}
