package cniplugin_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// hangingRestore is a folder whose iptables-restore hangs when it is first started; from then on it is the real one. The
// PID of the one that hangs is read from the file.
func hangingRestore(t *testing.T) (dir, pidFile string) {
	t.Helper()
	dir = t.TempDir()
	pidFile = filepath.Join(dir, "hanging", "pid")
	for _, name := range []string{"iptables-nft-restore", "iptables-legacy-restore"} {
		nettest.RequireProgram(t, name)
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\nif mkdir %s 2>/dev/null; then echo $$ >%s; exec sleep 1000; fi\nexec %s \"$@\"\n", filepath.Dir(pidFile), pidFile, real)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir, pidFile
}

// await waits for what is bound to come.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(nettest.Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to that: %s", what)
		}
	}
}

// An iptables that goes on without the plugin would still program a pod that the runtime has given up.
func TestIPTablesDiesWithThePlugin(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	dir, pidFile := hangingRestore(t)
	a.env["PATH"] = dir + ":" + os.Getenv("PATH")
	a.conf["backend"] = "iptables"
	cmd := a.command("ADD")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	await(t, "iptables-restore hangs", func() bool {
		text, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return pid > 0
	})
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	await(t, "iptables-restore dies", func() bool { return ended(pid) })
}

// ended reports whether a process runs no more; whoever adopted it may not have heard.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// After its deadline an ADD only cleans up. The runtime may have given it up, and the pod must not be programmed after that.
func TestNothingIsTriedAfterTheDeadline(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	dir, pidFile := hangingRestore(t)
	a.env["PATH"] = dir + ":" + os.Getenv("PATH")
	a.conf["timeout"] = "5s"
	if out, err := a.run("ADD"); err == nil {
		t.Errorf("ADD succeeds: %s", out)
	}
	if _, err := os.Stat(pidFile); err != nil {
		t.Errorf("nothing was tried before it: %v", err)
	}
	a.untouched()
	a.noTable()
}
