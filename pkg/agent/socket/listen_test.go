package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agentapi"
)

func TestTheSocketIsRootsAlone(t *testing.T) {
	t.Parallel()
	a := start(t, nil)
	for path, want := range map[string]os.FileMode{a.Path: os.ModeSocket | 0o600, filepath.Dir(a.Path): os.ModeDir | 0o700} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, mode %v, want %v", path, err, info.Mode(), want)
		}
	}
	a.stop()
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(a.Path), "*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

const clientSocket = "AGENT_TEST_SOCKET"

// TestAsAnotherUser is run by the test below, as another user.
func TestAsAnotherUser(t *testing.T) {
	socket := os.Getenv(clientSocket)
	if socket == "" {
		t.Skip("it is part of another test")
	}
	_, err := agentapi.Call(t.Context(), socket, lookup("a"), 2*time.Second)
	fmt.Printf("UID %d: %v\n", os.Getuid(), err)
	if errors.Is(err, agentapi.ErrNobody) {
		os.Exit(42)
	}
}

func TestAnotherUserGetsNoAnswer(t *testing.T) {
	t.Parallel()
	a := start(t, nil)
	binary := filepath.Join(filepath.Dir(a.Path), "client")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil || os.WriteFile(binary, self, 0o755) != nil {
		t.Fatal(err)
	}
	run := func(as *syscall.SysProcAttr) (string, error) {
		cmd := exec.Command(binary, "-test.run=^TestAsAnotherUser$", "-test.v")
		cmd.Env = append(os.Environ(), clientSocket+"="+a.Path, "TMPDIR=/tmp", "REQUIRE_NETNS=")
		cmd.Dir = "/"
		cmd.SysProcAttr = as
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	user := func(uid, gid uint32) *syscall.SysProcAttr {
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	}
	if out, err := run(user(0, 0)); err != nil {
		t.Fatalf("root is refused: %v: %s", err, out)
	}
	others := map[string]*syscall.SysProcAttr{
		"UID 1500": user(1500, 1500),
		"UID 1501": user(1501, 0), // of root's group
		// Root of a user namespace is, for the kernel outside, the user that it is mapped to.
		"UID 0": {
			Cloneflags:  syscall.CLONE_NEWUSER,
			Credential:  &syscall.Credential{},
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}},
		},
	}
	refused := func(when string) {
		for name, as := range others {
			out, err := run(as)
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() == 0 || !strings.Contains(out, name+": ") {
				t.Errorf("%s, %s: %v: %s", when, name, err, out)
			}
		}
	}
	folder := filepath.Dir(a.Path)
	for _, path := range []string{binary, filepath.Dir(folder)} { // only the socket's own modes are to keep them out
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(t.TempDir(), "client")
	if err := os.Rename(binary, program); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(program); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary = program
	refused("as it is")
	// Even if the modes were wrong.
	for path, mode := range map[string]os.FileMode{folder: 0o755, a.Path: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	refused("with wrong modes")
}

func TestAnAgentTakesOverWhatAnotherLeft(t *testing.T) {
	t.Parallel()
	old := start(t, nil)
	young := start(t, func(s *served) { s.Path = old.Path })
	if old.Serving() {
		t.Error("both think that the socket is theirs")
	}
	old.stop() // must not take the young one's socket away
	young.ask(t)
	if err := os.Remove(young.Path); err != nil {
		t.Fatal(err)
	}
	agenttest.Eventually(t, "a deleted socket is made again", young.Serving)
	young.ask(t)
}

func TestAStaleSocketIsReplacedAndAnythingElseIsNot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, "file")
	os.WriteFile(file, []byte("precious"), 0o600)
	if _, err := listen(t.Context(), file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file is %q", data)
	}
}
