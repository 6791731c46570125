package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

// connectionRate returns how many connections one client opens per second. Several clients would add up to a rate that none
// of them has.
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
	// Connections that are still tracked must not slow the next round down.
	return rate, pod.Pod.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// undisturbed gives this thread real-time priority, where that is allowed, until undo is called.
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
	// Sockets of the last round may still hold the port.
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 1)); err != nil {
		return -1, errors.Join(fmt.Errorf("listen on port %d: %w", port, err), unix.Close(fd))
	}
	return fd, nil
}

// connectFor opens and accepts one connection after the other for a time, and returns their rate per second.
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
	// Closing resets the connection, which frees its port.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set SO_LINGER: %w", err)
	}
	// A connection that a rule sends elsewhere must not hang.
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
