package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

const (
	workers    = 2
	rateRounds = 41
	rateTime   = 50 * time.Millisecond // of each round
)

// track is a pod in which connections are made.
type track struct {
	backend    string // "" for no rules
	exclusions int
}

func (t track) String() string { return fmt.Sprintf("%s with %d exclusions", t.backend, t.exclusions) }

// tracks are all that take turns.
func (l *lab) tracks() []track {
	all := []track{{}}
	for _, backend := range l.present(backends...) {
		for _, n := range []int{0, 100, 1000, many} {
			all = append(all, track{backend, n})
		}
	}
	return all
}

// connectionRates compares the rates of new connections that are redirected on their way out.
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
				rate, err := connectionRate(pods[i].Pod, tracks[i])
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
	return append(l.missing("4", "new connections, "), rateRows(tracks, rates)...), nil
}

func rateRows(tracks []track, rates map[track]float64) []row {
	const what = "new connections, "
	var rows []row
	for _, t := range tracks {
		none := track{backend: t.backend}
		switch {
		case t.backend == "":
			rows = append(rows, rated(what+"no rules at all", rates[track{backend: nftables.Name}], rates[t], limit{}))
		case t.exclusions > 0:
			var least limit
			if t.backend == nftables.Name && t.exclusions == many {
				least = limit{value: 0.95, atLeast: true}
			}
			rows = append(rows, rated(fmt.Sprintf("%s%s, %d exclusions", what, t.backend, t.exclusions), rates[none], rates[t], least))
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
	if t.backend == "" {
		return nil
	}
	rs, err := l.excluding(t.exclusions)
	if err != nil {
		return err
	}
	return program(ctx, ns, t.backend, rs)
}

// destination is where the application connects to. It is outside the pod, so only a redirected connection ends at the
// proxy's port in the pod.
func (t track) destination() *unix.SockaddrInet4 {
	if t.backend == "" {
		return &unix.SockaddrInet4{Addr: nettest.PodIPv4.As4(), Port: proxyPort}
	}
	return &unix.SockaddrInet4{Addr: nettest.OutsideIPv4.As4(), Port: 80}
}

// connectionRate lets the workers connect, and returns how many connections they make in a second.
func connectionRate(ns *nettest.Namespace, t track) (float64, error) {
	var listener int
	err := ns.Do(func() (err error) { listener, err = listen(proxyPort); return err })
	if err != nil {
		return 0, err
	}
	defer unix.Close(listener) //nolint:errcheck // nothing hangs on it
	rates, errs := make([]float64, workers), make([]error, workers)
	var running sync.WaitGroup
	for i := range workers {
		running.Go(func() {
			errs[i] = ns.Do(func() (err error) { rates[i], err = connectFor(rateTime, t.destination(), listener); return err })
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	var sum float64
	for _, rate := range rates {
		sum += rate
	}
	// What is still tracked must not cost the next ones.
	return sum, ns.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

func listen(port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	// Without SO_REUSEADDR, what the last round left would be in the way.
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, workers)); err != nil {
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
