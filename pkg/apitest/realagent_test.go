//go:build kubeapi

package apitest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startProgram runs the node's agent as deploy/ does, as a process, until the test ends. It returns the process's ID.
func (f *fleet) startProgram(m *member, program string) int {
	f.Helper()
	dir := filepath.Join(m.conf.StateDir, "program")
	account := filepath.Join(dir, "account")
	for _, folder := range []string{account, filepath.Join(dir, "bin"), filepath.Join(dir, "conf")} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			f.Fatal(err)
		}
	}
	ca, err := os.ReadFile(kubernetes.file("ca.crt"))
	if err != nil {
		f.Fatal(err)
	}
	for path, content := range map[string]string{
		"account/token": f.tokenOf(m.conf.StateDir), "account/ca.crt": string(ca),
		"netconf.json":     fmt.Sprintf(`{"mesh": "osm", "meshConfig": {"namespace": %q}}`, f.namespace),
		"conf/10.conflist": `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	// client-go looks for the credential in this folder only.
	const script = `set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
ln -s "$1" /run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script, "sh", account, program, "run", "--mark-node=true",
		"--config="+filepath.Join(dir, "netconf.json"), "--plugin="+detour, "--metrics=127.0.0.1:0", "--state-dir="+m.conf.StateDir,
		"--cni-bin-dir="+filepath.Join(dir, "bin"), "--cni-conf-dir="+filepath.Join(dir, "conf"), "--host-cni-conf-dir="+filepath.Join(dir, "conf"))
	host, port, _ := strings.Cut(m.address, ":")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "GOMEMLIMIT=100MiB", "GOGC=50", "NODE_NAME=" + m.name, "KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port,
	}
	cmd.Stdout, cmd.Stderr = f.Output(), f.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	return cmd.Process.Pid
}

// buildAgent builds the agent's program.
func buildAgent(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "detour-agent")
	if out, err := exec.Command("go", "build", "-o", program, "../../plugin/detour-agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	return program
}

// resident is what the process has of the machine's memory, in bytes: all, and what no file has.
func resident(t *testing.T, pid int) (all, own int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			all = kb << 10
		}
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kb); n == 1 {
			own = kb << 10
		}
	}
	return all, own
}
