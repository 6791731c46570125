package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/doctor"
	"github.com/detour-cni/detour/pkg/nettest"
)

var doctorDir = nettest.Programs(".")

// node is what detourctl doctor is run on.
type node struct {
	path   string // PATH; "" stands for the test's own
	conf   string // detour's entry; "" stands for none
	denied []nettest.Denial
}

// examine runs detourctl doctor and returns its report and its exit code.
func (n node) examine(t *testing.T, args ...string) (doctor.Report, int) {
	t.Helper()
	out, code := n.run(t, append(args, "-o", "json")...)
	var report doctor.Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return report, code
}

func (n node) run(t *testing.T, args ...string) ([]byte, int) {
	t.Helper()
	nettest.RequireNetns(t)
	dir := t.TempDir()
	if n.conf != "" {
		list := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge"}, %s]}`, n.conf)
		if err := os.WriteFile(filepath.Join(dir, "10-net.conflist"), []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := n.path
	if path == "" {
		path = os.Getenv("PATH")
	}
	runtime := exec.Command("sleep", "1000")
	runtime.Env = []string{"PATH=" + path}
	if err := runtime.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = runtime.Process.Kill(), runtime.Wait() }()
	cmd := exec.Command(filepath.Join(doctorDir(t), "detourctl"), append([]string{"doctor", "--cni-conf-dir", dir, "--cni-bin-dir", dir,
		"--state-dir", filepath.Join(dir, "state"), "--runtime-pid", fmt.Sprint(runtime.Process.Pid)}, args...)...)
	nettest.Deny(cmd, n.denied...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out, cmd.ProcessState.ExitCode()
}

// Every test kernel has everything.
func TestDoctorFindsEverythingWhereEverythingIs(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"iptables-nft-restore", "iptables-legacy-restore"} {
		nettest.RequireProgram(t, program)
	}
	report, code := node{}.examine(t)
	if code != 0 || report.Result == doctor.Wrong {
		t.Errorf("exit code %d, %+v", code, report)
	}
	seen := map[string]int{}
	for _, f := range report.Features {
		seen[f.Backend]++
		if !f.Present {
			t.Errorf("missing: %+v", f)
		}
	}
	if seen["nftables"] != seen["iptables-nft"]+2 || seen["iptables-nft"] != seen["iptables-legacy"] || seen["nftables"] < 50 { // the gate in both families
		t.Errorf("tried: %v", seen)
	}
	for _, trial := range report.Trials {
		if trial.Result != doctor.Fine || trial.Backend == "" {
			t.Errorf("%+v", trial)
		}
	}
}

// What the kernel refuses is missing, with the kernel's error and what to do.
func TestDoctorBelievesTheKernel(t *testing.T) {
	t.Parallel()
	report, code := node{
		path:   t.TempDir(), // no iptables
		denied: []nettest.Denial{{Call: unix.SYS_SOCKET, Errno: unix.EPROTONOSUPPORT, Argument: &nettest.Argument{Number: 2, Value: unix.NETLINK_NETFILTER}}},
	}.examine(t)
	if code != exitFinding || report.Result != doctor.Wrong {
		t.Errorf("exit code %d, %s", code, report.Result)
	}
	for _, trial := range report.Trials {
		if trial.Result != doctor.Wrong || trial.Reason == "" || trial.Do == "" {
			t.Errorf("%+v", trial)
		}
	}
	for _, f := range report.Features {
		if untaken := f.Name == doctor.Redirected; f.Present || f.Errno != "EPROTONOSUPPORT" || f.Do == "" || f.Result == doctor.Fine && !untaken {
			t.Errorf("%+v", f)
		}
	}
}

// lame is a folder in which iptables-restore refuses rules with a word, as it does if the kernel lacks the module.
func lame(t *testing.T, word string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore", "ip6tables-legacy-restore"} {
		nettest.RequireProgram(t, name)
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\ncase \"$1\" in --version) exec %[1]s --version; esac\ninput=$(cat)\n"+
			"case \"$input\" in *%[2]s*) echo 'no chain/target/match by that name' >&2; exit 2;; esac\necho \"$input\" | exec %[1]s \"$@\"\n", real, word)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir + ":" + os.Getenv("PATH")
}

// A missing feature is found alone, and means what it means for the net conf: nothing if nftables does it instead.
func TestDoctorSaysWhatAMissingFeatureMeans(t *testing.T) {
	const conf = `{"type": "detour", "manifests": "/dev/null", "mesh": %q, "backend": %q}`
	for _, c := range []struct {
		word          string
		missing       doctor.Kind
		mesh, backend string
		want          doctor.Result
		takes         string
	}{
		{"TPROXY", doctor.TProxy, "istio", "auto", doctor.Fine, "iptables-nft"},
		{"TPROXY", doctor.TProxy, "istio", "iptables", doctor.Limited, "iptables-nft"},
		{"TPROXY", doctor.TProxy, "osm", "iptables", doctor.Fine, "iptables-nft"},
		{"gid-owner", doctor.MatchGroup, "istio", "auto", doctor.Fine, "nftables"},
		{"gid-owner", doctor.MatchGroup, "istio", "iptables", doctor.Wrong, ""},
		{"gid-owner", doctor.MatchGroup, "osm", "iptables", doctor.Fine, "iptables-nft"},
	} {
		t.Run(c.word+" "+c.mesh+" "+c.backend, func(t *testing.T) {
			t.Parallel()
			report, _ := node{path: lame(t, c.word), conf: fmt.Sprintf(conf, c.mesh, c.backend)}.examine(t)
			if takes := report.Trials[0].Backend; takes != c.takes {
				t.Errorf("it takes %q, not %q", takes, c.takes)
			}
			for _, f := range report.Features {
				missing := f.Name == c.missing && strings.HasPrefix(f.Backend, "iptables")
				if f.Present == missing || missing && (f.Result != c.want || !strings.Contains(f.Error, "by that name")) {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

func TestDoctorPrintsWhatToDo(t *testing.T) {
	t.Parallel()
	out, _ := node{path: lame(t, "TPROXY")}.run(t)
	words := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{"istio IPv4+IPv6 fine iptables-nft", "tproxy - - IPv4+IPv6 istio: TPROXY", "-> modprobe xt_TPROXY; if there is no such module"} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	if lines := strings.Split(string(out), "\n"); slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, " ") }) {
		t.Errorf("lines end with blanks:\n%s", out)
	}
}
