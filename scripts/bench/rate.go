package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

const (
	rateRounds = 41
	rateTime   = 30 * time.Millisecond // of each round
)

// What is in the pod beside a backend's rules, each to tell what of the cost is not the rules'.
const (
	nothing    = "no rules at all"
	tracking   = "connection tracking alone"
	threeRules = "three rules"
)

// exclusionCounts are how long the lists of exclusions are.
var exclusionCounts = []int{0, 100, 1000, many}

// track is a pod in which connections are made.
type track struct {
	rules      string // a backend, or one of the above
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

// tracks are all that take turns.
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

// connectionRates compares the rates at which one client opens one connection after the other.
func connectionRates(ctx context.Context, l *lab) ([]row, error) {
	tracks := l.tracks()
	all := make([][]float64, len(tracks))
	err := withPods(len(tracks), func(pods []*nettest.World) error {
		for i, t := range tracks {
			if err := l.lay(ctx, t, pods[i].Pod); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
		}
		for range rateRounds {
			for _, i := range rand.Perm(len(tracks)) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				rate, err := connectionRate(pods[i], tracks[i])
				if err != nil {
					return fmt.Errorf("%s: %w", tracks[i], err)
				}
				all[i] = append(all[i], rate)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	rates := map[track]float64{}
	for i, t := range tracks {
		rates[t] = median(all[i])
	}
	l.plots["connection-rate.svg"] = ratePlot(l.present(backends...), rates).SVG()
	return append(l.missing("4", "new connections, "), rateRows(tracks, rates)...), nil
}

// rateRows has each track beside what it is to be compared with: the client that dials the proxy itself, or, for exclusions, the same
// backend without them; and our rules beside the least that redirect at all.
func rateRows(tracks []track, rates map[track]float64) []row {
	var rows []row
	for _, t := range tracks {
		floor, what := t, fmt.Sprintf("new connections %s, %s", t.direction(), t.rules)
		var least limit
		if t.exclusions == 0 {
			floor.rules = nothing
		} else {
			floor.exclusions = 0
			what += fmt.Sprintf(", %d exclusions", t.exclusions)
			if t.rules == nftables.Name && t.exclusions == many {
				least = limit{value: 0.95, atLeast: true}
			}
		}
		rows = append(rows, rated(what, rates[floor], rates[t], least))
		if t.rules == nftables.Name && t.exclusions == 0 {
			floor.rules = threeRules
			rows = append(rows, rated(what+" against "+threeRules, rates[floor], rates[t], limit{value: 0.98, atLeast: true}))
		}
	}
	return rows
}

// rated is the row of two rates, each per second.
func rated(what string, floor, detour float64, l limit) row {
	ratio := detour / floor
	return row{"4", what, perSecond(floor), perSecond(detour), fmt.Sprintf("%.2f", ratio), l.String(), l.verdict(ratio)}
}

func perSecond(rate float64) string { return fmt.Sprintf("%.1fk/s", rate/1000) }

// lay programs a track.
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

// tables are the least that track connections, and that redirect all of them but for the proxy's own and those within the pod.
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

// port is the proxy's.
func (t track) port() int {
	if t.inbound {
		return inboundPort
	}
	return proxyPort
}

// destination is where the client connects to. Where there is a redirection only a redirected connection ends at the proxy's port.
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

// connectionRate lets one client connect, and returns how many connections it makes in a second. One, because several on as many
// processors add up to a rate that none of them has.
func connectionRate(pod *nettest.World, t track) (float64, error) {
	var listener int
	err := pod.Pod.Do(func() (err error) { listener, err = listen(t.port()); return err })
	if err != nil {
		return 0, err
	}
	defer unix.Close(listener) //nolint:errcheck // nothing hangs on it
	client := pod.Pod
	if t.inbound {
		client = pod.Outside
	}
	var rate float64
	err = client.Do(func() (err error) {
		defer undisturbed()()
		rate, err = connectFor(rateTime, t.destination(), listener)
		return err
	})
	if err != nil {
		return 0, err
	}
	// What is still tracked must not cost the next ones.
	return rate, pod.Pod.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// undisturbed lets this thread go before all others of the machine, where that is allowed, until it is undone.
func undisturbed() (undo func()) {
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	return func() {
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
	}
}

func listen(port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	// Without SO_REUSEADDR, what the last round left would be in the way.
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 1)); err != nil {
		return -1, errors.Join(fmt.Errorf("listen on port %d: %w", port, err), unix.Close(fd))
	}
	return fd, nil
}

// connectFor makes one connection after the other, and accepts one for each that it makes.
func connectFor(t time.Duration, destination unix.Sockaddr, listener int) (float64, error) {
	began := time.Now()
	for n := 0; ; n++ {
		if took := time.Since(began); took > t {
			return float64(n) / took.Seconds(), nil
		}
		if err := connectOnce(destination, listener); err != nil {
			return 0, err
		}
	}
}

func connectOnce(destination unix.Sockaddr, listener int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing hangs on it
	// Closing resets the connection, so that no port is kept.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set SO_LINGER: %w", err)
	}
	// A connection that a rule sends elsewhere shall not hang.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000); err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	if err := unix.Connect(fd, destination); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	return unix.Close(accepted)
}
