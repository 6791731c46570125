package conns

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/sockets"
)

const childPort = "CONNS_TEST_PORT"

// TestProcessesChild is the process that TestProcesses starts. It listens until standard input ends.
func TestProcessesChild(t *testing.T) {
	port := os.Getenv(childPort)
	if port == "" {
		t.Skip("it is for TestProcesses")
	}
	l, err := net.Listen("tcp4", "0.0.0.0:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fmt.Println("\nready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// A process has its user, but also its group, which only /proc tells.
func TestProcesses(t *testing.T) {
	t.Parallel()
	pod := nettest.StartNamespace(t, "pod")
	pid := startChild(t, pod, "15001")
	startChild(t, pod, "15006")
	ns, err := netns.Open(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s, err := Read(ns)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.FindProxy("", redirect.Proxy{})
	if err != nil || p.Mesh != "istio" || len(p.Processes) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	found := p.Processes[0]
	if found.PID != pid || found.GID != 1338 || found.Name == "" {
		t.Errorf("%+v, want PID %d", found, pid)
	}
}

func TestTheFirstOfSeveralProcessesHoldsASocket(t *testing.T) {
	found := holders([]sockets.Process{{PID: 1, Sockets: []uint32{7}}, {PID: 2, Sockets: []uint32{7, 8}}})
	if len(found) != 2 || found[7].PID != 1 || found[8].PID != 2 {
		t.Errorf("got %+v", found)
	}
}

func startChild(t *testing.T, pod *nettest.Namespace, port string) (pid int) {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.run=^TestProcessesChild$")
	c.Dir = "/"
	c.Env = append(os.Environ(), childPort+"="+port)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1337, Gid: 1338}}
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Do(c.Start); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.Contains(lines.Text(), "ready") {
	}
	t.Cleanup(func() {
		stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		_ = c.Wait()
	})
	return c.Process.Pid
}
