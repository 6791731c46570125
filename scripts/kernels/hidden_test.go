//go:build kernels

package kernels

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/doctor"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// node lacks modules.
type node struct {
	lacks []string
	adds  []outcome
}

// outcome is what becomes of ADD on a node.
type outcome struct {
	choice string // the net conf's backend
	pod    string // a case of testdata
	takes  string // the backend that ADD ends up with; "" if it fails
	says   string // what the error has then
}

var nodes = []node{
	{[]string{"nft_redir"}, []outcome{
		{backend.NFTables, "osm/defaults", "", "module nft_redir"},
		{backend.Auto, "osm/defaults", "iptables-nft", ""},
	}},
	{[]string{"nft_chain_nat"}, []outcome{ // legacy iptables is not the host's default, and stays untouched
		{backend.NFTables, "osm/defaults", "", "module nft_chain_nat"},
		{backend.Auto, "osm/defaults", "", "module nft_chain_nat"},
	}},
}

// A node lacks modules: ADD takes another backend, or its error names what is missing, and nothing is left. Doctor said so
// beforehand.
func TestWhereAModuleIsMissing(t *testing.T) {
	t.Cleanup(func() { hide(t) })
	for _, n := range nodes {
		t.Run(strings.Join(n.lacks, "+"), func(t *testing.T) {
			hide(t, n.lacks...)
			if loaded := anyLoaded(n.lacks); loaded != "" {
				t.Skipf("%s is loaded, and stays so", loaded)
			}
			report := examine(t, "osm")
			for _, o := range n.adds {
				t.Run(o.choice+"/"+o.pod, func(t *testing.T) {
					hide(t, n.lacks...) // so that ADD meets what doctor met
					o.check(t, report)
				})
			}
		})
	}
}

// check starts ADD.
func (o outcome) check(t *testing.T, report doctor.Report) {
	t.Helper()
	a := newADD(t, o.choice, o.pod)
	took, err := a.run()
	t.Logf("@ADD took %q: %v", took, err)
	if took != o.takes || err != nil && !strings.Contains(err.Error(), o.says) {
		t.Errorf("ADD took %q, want %q: %v, want %q", took, o.takes, err, o.says)
	}
	if err != nil {
		a.checkNothingLeft()
	}
	_, rs, families := build(t, o.pod)
	switch {
	case o.choice == backend.Auto:
		i := slices.IndexFunc(report.Trials, func(trial doctor.Trial) bool { return slices.Equal(trial.Families, families) })
		if said := report.Trials[i]; said.Backend != took {
			t.Errorf("ADD took %q, but doctor said that it takes %q: %s", took, said.Backend, said.Reason)
		}
	case took != "":
		if m := report.Missing(took, rs, families); len(m) > 0 {
			t.Errorf("%s works, but doctor said that it lacks %s", took, names(m))
		}
	case !lacksIn(report, o.choice, rs, families):
		t.Errorf("ADD failed, but doctor said that %s lacks nothing", o.choice)
	}
}

// lacksIn reports whether one of a backend's variants lacks something.
func lacksIn(r doctor.Report, choice string, rs rules.Ruleset, families []rules.Family) bool {
	return slices.ContainsFunc(r.Features, func(f doctor.Feature) bool {
		return strings.HasPrefix(f.Backend, choice) && len(r.Missing(f.Backend, rs, families)) > 0
	})
}

const hiddenFile = "/etc/modprobe.d/hidden.conf"

// hide sees to it that these modules can't be loaded, and unloads what it can of netfilter, these included.
func hide(t *testing.T, modules ...string) {
	t.Helper()
	var conf strings.Builder
	for _, m := range modules {
		fmt.Fprintf(&conf, "install %s /bin/false\n", m)
	}
	if err := os.MkdirAll(filepath.Dir(hiddenFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hiddenFile, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// Namespaces that are going still use some.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		unload(t)
		if anyLoaded(modules) == "" {
			return
		}
	}
}

var netfilter = regexp.MustCompile(`^(nf|xt_|x_tables|ip6?t|ip6?_tables|ip_set)`)

// unload removes what nothing uses.
func unload(t *testing.T) {
	t.Helper()
	for range 20 {
		text, err := os.ReadFile("/proc/modules")
		if err != nil {
			t.Fatal(err)
		}
		var unused []string
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); netfilter.MatchString(f[0]) && f[2] == "0" {
				unused = append(unused, f[0])
			}
		}
		if len(unused) == 0 {
			return
		}
		_ = exec.Command("rmmod", unused...).Run() // some may be in use again
	}
}

func anyLoaded(modules []string) string {
	for _, m := range modules {
		if _, err := os.Stat("/sys/module/" + m); err == nil {
			return m
		}
	}
	return ""
}

// add is an ADD for a pod of testdata.
type add struct {
	t   *testing.T
	ns  *nettest.Namespace
	dir string
	cmd *exec.Cmd
}

func newADD(t *testing.T, choice, pod string) *add {
	t.Helper()
	c, _, _ := build(t, pod)
	request, _ := c.Pod(t)
	a := &add{t: t, ns: nettest.StartNamespace(t, "pod"), dir: t.TempDir()}
	ips := []any{}
	for _, address := range c.Addresses(t) {
		bits := map[bool]string{true: "/24", false: "/64"}[address.Is4()]
		ips = append(ips, map[string]any{"address": address.String() + bits})
	}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "detour", "mesh": c.Mesh, "backend": choice, "manifests": c.Manifests(t),
		"stateDir": a.dir + "/state", "logFile": a.dir + "/log", "timeout": "1m",
		"prevResult": map[string]any{"cniVersion": "1.1.0", "ips": ips, "dns": map[string]any{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.cmd = exec.Command(programs + "detour")
	a.cmd.Stdin = bytes.NewReader(conf)
	a.cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_PATH="+programs, "CNI_NETNS="+a.ns.Path(),
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s", request.Namespace, request.Name))
	return a
}

// run returns the backend that ADD took.
func (a *add) run() (string, error) {
	a.t.Helper()
	out, err := a.cmd.Output()
	if err != nil {
		var failed types.Error
		if json.Unmarshal(out, &failed) != nil {
			a.t.Fatalf("ADD: %v: %s", err, out)
		}
		return "", &failed
	}
	records := a.records()
	if len(records) != 1 {
		a.t.Fatalf("records: %q", records)
	}
	text, err := os.ReadFile(records[0])
	if err != nil {
		a.t.Fatal(err)
	}
	var record struct{ Backend string }
	if err := json.Unmarshal(text, &record); err != nil {
		a.t.Fatal(err)
	}
	return record.Backend, nil
}

func (a *add) records() []string {
	paths, err := filepath.Glob(a.dir + "/state/attachments/*/*")
	if err != nil {
		a.t.Fatal(err)
	}
	return slices.DeleteFunc(paths, func(p string) bool { return strings.HasPrefix(filepath.Base(p), ".") })
}

func (a *add) checkNothingLeft() {
	a.t.Helper()
	if left := a.records(); len(left) > 0 {
		a.t.Errorf("records are left: %q", left)
	}
	checkNothingLeft(a.t, a.ns)
}

// output is what a program says in a namespace.
func output(ns *nettest.Namespace, program string, args ...string) (string, error) {
	var out []byte
	err := ns.Do(func() (err error) { out, err = exec.Command(program, args...).Output(); return err })
	return string(out), err
}
