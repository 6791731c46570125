package cniplugin_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// What is no pod's network namespace is refused by ADD and CHECK, and DEL has nothing to do there.
func TestWhatIsNoPodsNamespace(t *testing.T) {
	for name, c := range map[string]struct {
		path func(a *attachment) string
		says string
	}{
		"a file":                      {func(a *attachment) string { a.file("netns", ""); return a.path("netns") }, "there is no network namespace"},
		"a folder":                    {func(a *attachment) string { return a.dir }, "there is no network namespace"},
		"a namespace of another kind": {func(*attachment) string { return "/proc/self/ns/uts" }, "there is no network namespace"},
		"nothing":                     {func(a *attachment) string { return a.path("nothing") }, "there is no network namespace"},
		"the host's":                  {func(*attachment) string { return "/proc/self/ns/net" }, "it is the host's network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.env["CNI_NETNS"] = c.path(a)
			a.fails("ADD", 8, c.says, a.env["CNI_NETNS"])
			a.fails("CHECK", 8, c.says)
			if c.says != "it is the host's network namespace" { // which libcni's skeleton refuses, too
				a.must("DEL")
			}
			a.untouched()
		})
	}
}

// A pod that is killed while its ADD runs takes its namespace's file along. The ADD ends, and DEL leaves nothing.
func TestANamespaceThatVanishesMeanwhile(t *testing.T) {
	for _, backend := range []string{"iptables", "auto"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["backend"] = backend
			dir := t.TempDir()
			for _, name := range []string{"iptables-nft-restore", "iptables-legacy-restore", "iptables-restore"} {
				nettest.RequireProgram(t, name)
				real, err := exec.LookPath(name)
				if err != nil {
					t.Fatal(err)
				}
				wait := fmt.Sprintf("#!/bin/sh\n>%[1]s/started\nwhile ! test -e %[1]s/go; do sleep 0.01; done\nexec %[2]s \"$@\"\n", dir, real)
				if name == "iptables-restore" {
					wait = fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", real)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(wait), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			a.env["PATH"] = dir + ":" + os.Getenv("PATH")
			add := a.command("ADD")
			if err := add.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, "iptables-restore runs", func() bool { _, err := os.Stat(filepath.Join(dir, "started")); return err == nil })
			if err := a.ns.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := add.Wait(); err != nil {
				t.Errorf("ADD: %v", err)
			}
			a.fails("CHECK", 8, "there is no network namespace")
			a.must("DEL")
			if left := a.records(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			a.must("GC")
			if locks, err := os.ReadDir(a.path("state/namespaces")); err != nil || len(locks) > 0 {
				t.Errorf("left: %v, %v", locks, err)
			}
		})
	}
}
