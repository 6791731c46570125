package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

// closeTime is how long the proxy has to end.
const closeTime = 2 * time.Second

// proxyProcess is a running proxy.
type proxyProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// startProxy starts this program as the proxy in the namespace, as that user and group, and waits until it listens. A root
// user keeps only CAP_NET_ADMIN.
func startProxy(ns *nettest.Namespace, uid, gid uint32, c proxyConfig) (*proxyProcess, error) {
	config, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	// The program's own path would fail for a user who may not enter its folder.
	cmd := exec.Command("/proc/self/exe", proxyCommand, string(config))
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	err = ns.Do(func() error {
		if err := keepOnly(unix.CAP_NET_ADMIN); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p := &proxyProcess{cmd, stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != readyLine {
		return nil, errors.Join(fmt.Errorf("start proxy: it said %q and not that it is ready", line), p.Close())
	}
	return p, nil
}

// keepOnly leaves only one capability to the processes that the calling thread starts.
func keepOnly(capability uintptr) error {
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if c == capability {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: an older kernel
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// Close ends the proxy.
func (p *proxyProcess) Close() error {
	p.stdin.Close()
	killer := time.AfterFunc(closeTime, func() { _ = p.cmd.Process.Kill() })
	defer killer.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("end proxy: %w", err)
	}
	return nil
}
