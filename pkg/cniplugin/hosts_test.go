//go:build faults

package cniplugin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/doctor"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// host is a node as somebody may have set it up.
type host struct {
	path    func(t *testing.T) string // PATH; nil stands for the test's own
	env     map[string]string
	denied  []nettest.Denial
	pod     func(a *attachment) // what is particular about the pod
	timeout string
	// mayRemain is true where not even a removal is possible.
	mayRemain bool

	// What ADD takes with backend auto, or what it says if it fails.
	takes, fails string
	// What ADD says with backend iptables; it works if that is empty.
	iptables string
	// What ADD says with backend nftables; it works if that is empty.
	nftables string
}

// links is a folder with links to the programs of one variant, by the names of the host's default: those of IPv4 or of both families.
func links(variant string, prefixes ...string) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		dir := t.TempDir()
		for _, prefix := range prefixes {
			for _, suffix := range []string{"", "-save", "-restore"} {
				real, err := exec.LookPath(prefix + "tables-" + variant + suffix)
				if err != nil {
					t.Fatal(err)
				}
				target, err := filepath.EvalSymlinks(real)
				if err == nil {
					err = os.Symlink(target, filepath.Join(dir, prefix+"tables"+suffix))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		return dir
	}
}

// programs is a folder in which all of iptables' programs are made by one function.
func programs(with func(path string) error) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		dir := t.TempDir()
		for _, name := range []string{"iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"} {
			if err := with(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		return dir + ":" + onlyShell(t)
	}
}

// onlyShell is a folder with the programs that scripts start.
func onlyShell(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"cat", "sleep"} {
		real, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(real, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func script(text string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700) }
}

const says = `case "$1" in --version) echo "iptables v1.8.9 (nf_tables)"; exit;; esac; `

var hosts = map[string]host{
	"as it is":      {takes: "iptables-nft"},
	"no iptables":   {path: func(t *testing.T) string { return t.TempDir() }, takes: "nftables", iptables: "install the package iptables"},
	"an empty PATH": {path: func(*testing.T) string { return "" }, takes: "nftables", iptables: "install the package iptables"},
	"only legacy":   {path: links("legacy", "ip", "ip6"), takes: "iptables-legacy"},
	"only nft":      {path: links("nft", "ip", "ip6"), takes: "iptables-nft"},
	"no ip6tables":  {path: links("nft", "ip"), takes: "nftables", iptables: "missing: ip6tables-restore"},
	"no ip6tables, and no IPv6 in the pod": {path: links("nft", "ip"), takes: "iptables-nft", pod: func(a *attachment) {
		a.conf["prevResult"] = prevResult("10.77.0.2/24")
	}},
	"a PATH with relative entries": {path: func(t *testing.T) string { return "relative::." + ":" + links("nft", "ip", "ip6")(t) }, takes: "iptables-nft"},
	"an odd locale":                {env: map[string]string{"LANG": "tr_TR.UTF-8", "LC_ALL": "xx", "LANGUAGE": "tr"}, takes: "iptables-nft"},
	"programs that are folders":    {path: programs(func(path string) error { return os.Mkdir(path, 0o700) }), takes: "nftables", iptables: "install the package iptables"},
	"programs that are not executable": {path: programs(func(path string) error { return os.WriteFile(path, nil, 0o600) }),
		takes: "nftables", iptables: "install the package iptables"},
	"programs of another architecture": {path: programs(func(path string) error {
		return os.WriteFile(path, []byte("\x7fELF\x02\x01\x01 of another machine"), 0o700)
	}),
		takes: "nftables", iptables: "exec format error"},
	"programs that print garbage": {path: programs(script("echo garbage")), takes: "nftables", iptables: `it says "garbage`},
	"programs that do nothing":    {path: programs(script(says + "cat >/dev/null")), takes: "nftables", iptables: "the kernel has none of its tables"},
	"programs that fail":          {path: programs(script(says + "echo no luck >&2; exit 4")), takes: "nftables", iptables: "no luck"},
	"programs that hang": {path: programs(script(says + "sleep 1000")), timeout: "3s",
		fails: "iptables-restore: context deadline exceeded", iptables: "iptables-restore: context deadline exceeded"},
	"programs that hang when they are asked for their version": {path: programs(script("sleep 1000")), timeout: "10s",
		takes: "nftables", iptables: "deadline exceeded"},
	"no program may be started": {denied: []nettest.Denial{{Call: unix.SYS_EXECVE, Errno: unix.EPERM}}, takes: "nftables", iptables: "operation not permitted"},
	"no IPv6 in the kernel, and no IPv6 in the pod": {denied: []nettest.Denial{noIPv6}, takes: "iptables-nft", pod: func(a *attachment) {
		a.conf["prevResult"] = prevResult("10.77.0.2/24")
	}},
	"IPv6 is off in the pod": {takes: "iptables-nft", pod: func(a *attachment) {
		a.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
		a.conf["prevResult"] = prevResult("10.77.0.2/24")
	}},
	"IPv6 is off in the pod, which has an address": {takes: "iptables-nft", pod: func(a *attachment) { a.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1") }},
	"no nf_tables":              {denied: []nettest.Denial{noNetfilter}, takes: "iptables-legacy", nftables: "CONFIG_NETFILTER_NETLINK"},
	"no nf_tables, only legacy": {denied: []nettest.Denial{noNetfilter}, path: links("legacy", "ip", "ip6"), takes: "iptables-legacy", nftables: "CONFIG_NETFILTER_NETLINK"},
	"no netlink":                {denied: []nettest.Denial{{Call: unix.SYS_SOCKET, Errno: unix.EACCES, Argument: &nettest.Argument{Value: unix.AF_NETLINK}}}, fails: "permission denied", iptables: "permission denied", nftables: "permission denied"},
	"no namespace may be entered": {mayRemain: true, denied: []nettest.Denial{{Call: unix.SYS_SETNS, Errno: unix.EPERM}},
		fails: "CAP_SYS_ADMIN", iptables: "CAP_SYS_ADMIN", nftables: "CAP_SYS_ADMIN"},
}

var (
	noIPv6      = nettest.Denial{Call: unix.SYS_SOCKET, Errno: unix.EAFNOSUPPORT, Argument: &nettest.Argument{Value: unix.AF_INET6}}
	noNetfilter = nettest.Denial{Call: unix.SYS_SOCKET, Errno: unix.EPROTONOSUPPORT, Argument: &nettest.Argument{Number: 2, Value: unix.NETLINK_NETFILTER}}
)

// On every host ADD programs the right rules, or says what is wrong and leaves nothing; and detourctl doctor knew it.
func TestHosts(t *testing.T) {
	for name, h := range hosts {
		for choice, fails := range map[string]string{"auto": h.fails, "iptables": h.iptables, "nftables": h.nftables} {
			t.Run(name+"/"+choice, func(t *testing.T) {
				t.Parallel()
				h.test(t, choice, fails)
			})
		}
	}
}

func (h host) test(t *testing.T, choice, fails string) {
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["backend"], a.denied = choice, h.denied
	maps.Copy(a.env, h.env)
	if h.path != nil {
		a.env["PATH"] = h.path(t)
	}
	if h.timeout != "" {
		a.conf["timeout"] = h.timeout
	}
	if h.pod != nil {
		h.pod(a)
	}
	families := rules.Families
	if fmt.Sprint(a.conf["prevResult"]) == fmt.Sprint(prevResult("10.77.0.2/24")) {
		families = families[:1]
	}
	predicted := a.doctor(families)
	_, status := a.run("STATUS")
	_, err := a.run("ADD")
	if fails != "" {
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(fails)) {
			t.Errorf("ADD says %v, not %q", err, fails)
		}
		if predicted.Result == doctor.Fine {
			t.Errorf("the doctor did not know: %+v", predicted)
		}
		a.noRules()
		if h.mayRemain { // nobody could look; DEL will
			a.denied = nil
		}
		a.must("DEL")
		a.untouched()
		return
	}
	if err != nil || status != nil {
		t.Fatalf("ADD says %v, STATUS %v, the doctor %+v", err, status, predicted)
	}
	a.must("CHECK")
	took := a.logged()[0]["backend"]
	if choice == "auto" && took != h.takes || predicted.Result != doctor.Fine || predicted.Backend != took {
		t.Errorf("ADD takes %v, not %s, and the doctor says %+v", took, h.takes, predicted)
	}
	a.redirects(families)
	a.must("DEL")
	a.untouched()
}

// doctor asks what ADD will do with these families, on the same host.
func (a *attachment) doctor(families []rules.Family) doctor.Trial {
	a.t.Helper()
	dir := a.t.TempDir()
	conf, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": "net", "plugins": []any{map[string]any{"type": "bridge"}, a.conf}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "10-net.conflist"), conf, 0o600)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	runtime := a.as(exec.Command("sleep", "1000"))
	if err := runtime.Start(); err != nil {
		a.t.Fatal(err)
	}
	defer func() { _, _ = runtime.Process.Kill(), runtime.Wait() }()
	cmd := a.as(exec.Command(filepath.Join(binDir(a.t), "detourctl"), "doctor", "-o", "json", "--cni-conf-dir", dir, "--cni-bin-dir", binDir(a.t), "--runtime-pid", fmt.Sprint(runtime.Process.Pid)))
	nettest.Deny(cmd, a.denied...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	var report doctor.Report
	if err != nil && !errors.As(err, &exit) || json.Unmarshal(out, &report) != nil {
		a.t.Fatalf("detourctl doctor: %v: %s", err, out)
	}
	i := slices.IndexFunc(report.Trials, func(trial doctor.Trial) bool { return slices.Equal(trial.Families, families) })
	if i < 0 {
		return doctor.Trial{Result: report.Result, Reason: string(out)}
	}
	return report.Trials[i]
}

// as gives a program the attachment's PATH and locale.
func (a *attachment) as(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = os.Environ()
	for _, name := range []string{"PATH", "LANG", "LC_ALL", "LANGUAGE"} {
		if value, ok := a.env[name]; ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

// redirects expects that the kernel redirects in these families, as nft or iptables-legacy lists it.
func (a *attachment) redirects(families []rules.Family) {
	a.t.Helper()
	all := a.output("nft", "list", "ruleset")
	for _, f := range families {
		program := map[rules.Family]string{rules.IPv4: "iptables-legacy-save", rules.IPv6: "ip6tables-legacy-save"}[f]
		legacy := a.output(program)
		table := map[rules.Family]string{rules.IPv4: "table ip nat", rules.IPv6: "table ip6 nat"}[f]
		in := []string{"table inet detour", table}
		if !strings.Contains(legacy, "--to-ports 15001") && !slices.ContainsFunc(in, func(t string) bool { return strings.Contains(all, t) }) {
			a.t.Errorf("%s is not redirected: %s", f, all)
		}
	}
	if bytes.Count([]byte(all), []byte("15001")) == 0 && !strings.Contains(a.output("iptables-legacy-save"), "15001") {
		a.t.Errorf("nothing is redirected: %s", all)
	}
}
