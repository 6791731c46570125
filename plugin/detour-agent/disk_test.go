//go:build faults

package main

import (
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// smallDisks gives the node's folders to small filesystems, which only the agent sees, and a ServiceAccount to the agent.
const smallDisks = `for d in net.d bin state; do
	mkdir -p "$1/$d"; cp -a "$1/$d" "$1/$d.was"; mount -t tmpfs -o size=96k,nr_inodes=40 tmpfs "$1/$d"; cp -a "$1/$d.was/." "$1/$d"; chmod 755 "$1/$d"
done` + serviceAccount

func newSmallNode(t *testing.T) (agents, *hostNode) {
	t.Helper()
	n := newHostNode(t, tree{"net.d/10-x.conflist": bridge}, images[0])
	a := agents{nettest.StartMounts(t, smallDisks, n.root)}
	n.seen = a.Path(n.root)
	return a, n
}

// disk runs a shell script in the node's root.
func (n *hostNode) disk(t *testing.T, a agents, script string) {
	t.Helper()
	if err := a.Shell(`cd "$1"; `+script, n.root); err != nil {
		t.Fatal(err)
	}
}

// has reports whether detour is installed in 10-x.conflist, with that token.
func (n *hostNode) has(token string) bool {
	now, _ := n.holds()
	return strings.Contains(now["net.d/10-x.conflist"], `"type":"detour"`) && now["bin/detour"] == "plugin 1" && now["net.d/detour-token"] == token && now["net.d/detour-kubeconfig"] != ""
}

// start starts the agent and returns what it says, and a function that stops it.
func (a agents) start(t *testing.T, n *hostNode) (said *safeBuffer, stop func()) {
	t.Helper()
	cmd := a.command(t, n, "run")
	said = &safeBuffer{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("the agent ended with %v: %s", err, said)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return said, stop
}

// Whatever is wrong with the node's disk, the agent says so, breaks no network, and installs and uninstalls as soon as it can.
func TestADiskThatCannotBeUsed(t *testing.T) {
	const (
		fill  = `cat /dev/zero >%/fill 2>&1 || true`
		crowd = `i=0; while touch %/inode$i 2>&1; do i=$((i+1)); done`
		full  = "no space left on device: make room on that filesystem"
	)
	in := func(dir, script string) string { return strings.ReplaceAll(script, "%", dir) }
	for name, c := range map[string]struct {
		spoil, restore string
		says           string // by an agent that installs; empty if it can all the same
		renews         string // by one that renews a token
		removes        string // by the removal
	}{
		"net.d full":           {in("net.d", fill), "rm net.d/fill", full, full, full},
		"net.d without inodes": {in("net.d", crowd), "rm net.d/inode*", full, full, full},
		"net.d read-only": {"mount -o remount,ro net.d", "mount -o remount,rw net.d", "mount that filesystem read-write",
			"mount that filesystem read-write", "mount that filesystem read-write"},
		"bin full":              {in("bin", fill), "rm bin/fill", full, "", ""},
		"bin read-only":         {"mount -o remount,ro bin", "mount -o remount,rw bin", "mount that filesystem read-write", "", "mount that filesystem read-write"},
		"state without inodes":  {in("state", crowd), "rm state/inode*", full, "", ""},
		"state read-only":       {"mount -o remount,ro state", "mount -o remount,rw state", "mount that filesystem read-write", "", ""},
		"a huge list":           {"truncate -s 100M net.d/00-y.conflist", "rm net.d/00-y.conflist", "00-y.conflist: it is too large: 104857600 bytes", "", "00-y.conflist: it is too large"},
		"a list in a loop":      {"ln -s 00-y.conflist net.d/00-y.conflist", "rm net.d/00-y.conflist", "which is a symbolic link, too: replace them by a file", "", ""},
		"a list elsewhere":      {"ln -s /etc/other.conflist net.d/00-y.conflist", "rm net.d/00-y.conflist", "a symbolic link that leads out of the folder", "", ""},
		"a list to nowhere":     {"ln -s none net.d/00-y.conflist", "rm net.d/00-y.conflist", "", "", ""},
		"a FIFO":                {"mkfifo net.d/00-y.conflist", "rm net.d/00-y.conflist", "", "", ""},
		"a FIFO behind a link":  {"mkfifo net.d/fifo; ln -s fifo net.d/00-y.conflist", "rm net.d/00-y.conflist net.d/fifo", "", "", ""},
		"a device":              {"mknod net.d/00-y.conflist c 1 5", "rm net.d/00-y.conflist", "", "", ""},
		"a folder":              {"mkdir net.d/00-y.conflist", "rmdir net.d/00-y.conflist", "", "", ""},
		"no JSON":               {"echo '<list>' >net.d/00-y.conflist", "rm net.d/00-y.conflist", "", "", ""},
		"JSON of another shape": {"echo '[]' >net.d/00-y.conflist", "rm net.d/00-y.conflist", "", "", ""},
		"a BOM":                 {`printf '\357\273\277{"name": "y", "plugins": []}' >net.d/00-y.conflist`, "rm net.d/00-y.conflist", "", "", ""},
		"half a list":           {`printf '{"name": "y", "plugins": [{"type": "bri' >net.d/00-y.conflist`, "rm net.d/00-y.conflist", "", "", ""},
		"thousands of files": {"mount -o remount,size=40m,nr_inodes=3000 net.d; i=0; while [ $i -lt 2000 ]; do echo '{}' >net.d/00-$i.conf; i=$((i+1)); done",
			"rm net.d/00-*", "", "", ""},
		"the token a folder":    {"until rm -f net.d/detour-token && mkdir net.d/detour-token 2>&1; do :; done", "rmdir net.d/detour-token 2>&1 || true", "remove what is in its place", "remove what is in its place", ""},
		"the token a FIFO":      {"until rm -f net.d/detour-token && mkfifo net.d/detour-token 2>&1; do :; done", ":", "", "", ""},
		"the token huge":        {"truncate -s 100M net.d/detour-token; chmod 600 net.d/detour-token", ":", "", "", ""},
		"the kubeconfig empty":  {": >net.d/detour-kubeconfig", ":", "", "", ""},
		"the binary a folder":   {"until rm -f bin/detour && mkdir bin/detour 2>&1; do :; done", "rmdir bin/detour 2>&1 || true", "remove what is in its place", "remove what is in its place", ""},
		"the next token empty":  {": >pod/token", ":", "pod/token is empty", "pod/token is empty", ""},
		"the next token a FIFO": {"rm pod/token; mkfifo pod/token", ":", "no regular file", "no regular file", ""},
		"the image's plugin":    {"mv pod/plugin pod/plug", "mv pod/plug pod/plugin", "install binary: ", "install binary: ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, n := newSmallNode(t)
			n.disk(t, a, c.spoil)
			said, stop := a.start(t, n)
			comesTo := func(what string, ok func() bool) {
				t.Helper()
				for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						now, temps := n.holds()
						t.Fatalf("it has not come to that: %s: there is %.1000q %q: %s", what, now, temps, said)
					}
				}
			}
			phase := func(token, says string) {
				t.Helper()
				if says == "" {
					comesTo(token+" in spite of it", func() bool { return n.has(token) })
				} else {
					comesTo(says, func() bool { return strings.Contains(said.String(), says) })
				}
				now, _ := n.holds()
				if list := now["net.d/10-x.conflist"]; token == "token 2" && !strings.Contains(list, `"type":"detour"`) || token == "token 1" && says != "" && !strings.Contains(list, "bridge") {
					t.Errorf("%s: the list is %s", says, list)
				}
				n.disk(t, a, c.restore+"; rm -f pod/token; printf '"+token+"' >pod/token")
				comesTo(token, func() bool { _, temps := n.holds(); return n.has(token) && len(temps) == 0 })
			}
			phase("token 1", c.says)
			n.disk(t, a, c.spoil+"; if test -s pod/token; then printf 'token 2' >pod/token; fi")
			phase("token 2", c.renews) // the log has the same news once a minute
			stop()
			n.disk(t, a, c.spoil)
			out, err := a.command(t, n, "uninstall").CombinedOutput()
			if (err == nil) != (c.removes == "") || !strings.Contains(string(out), c.removes) {
				t.Errorf("uninstall: %v: %s, want %q", err, out, c.removes)
			}
			n.disk(t, a, c.restore)
			if out, err := a.command(t, n, "uninstall").CombinedOutput(); err != nil {
				t.Errorf("uninstall: %v: %s", err, out)
			}
			if now, temps := n.holds(); !maps.Equal(now, tree{"net.d/10-x.conflist": bridge}) || len(temps) > 0 {
				t.Errorf("at the end there is %.1000q %q", now, temps)
			}
		})
	}
}
