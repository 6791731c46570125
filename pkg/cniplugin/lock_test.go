package cniplugin_test

import (
	"os/exec"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// Any process of the pod may lock what it can open: its own namespace's file, and it needs no privilege for that. It must
// not keep the node from programming the pod, checking it or letting it end.
func TestAPodCantKeepItsNodeWaiting(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "flock")
	nettest.RequireProgram(t, "setpriv")
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["timeout"] = "20s"
	a.hostileLock()
	for _, verb := range []string{"ADD", "CHECK", "ADD", "DEL"} {
		a.must(verb)
	}
	a.untouched()
}

// hostileLock starts a process of an unprivileged user in the pod that locks its namespace until the test ends.
func (a *attachment) hostileLock() {
	a.t.Helper()
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
		"flock", "/proc/self/ns/net", "sh", "-c", "echo locked; exec cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := a.ns.Do(cmd.Start); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if _, err := stdout.Read(make([]byte, 6)); err != nil {
		a.t.Fatalf("the pod's process has not locked its namespace: %v", err)
	}
}
