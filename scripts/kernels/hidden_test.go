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
)

// missing is a node that lacks modules, and what becomes of ADD there.
type missing struct {
	modules []string
	backend string // the net conf's
	pod     string // a case of testdata
	takes   string // the backend that ADD ends up with; "" if it fails
	says    string // what the error has then
}

var nodes = []missing{
	{[]string{"nft_redir"}, backend.NFTables, "osm/defaults", "", "module nft_redir"},
	{[]string{"nft_redir"}, backend.Auto, "osm/defaults", "iptables-nft", ""},
	{[]string{"nft_chain_nat"}, backend.NFTables, "osm/defaults", "", "module nft_chain_nat"},
	{[]string{"nft_chain_nat"}, backend.Auto, "osm/defaults", "iptables-legacy", ""},
	{[]string{"nft_tproxy"}, backend.NFTables, "istio/tproxy", "", "module nft_tproxy"},
	{[]string{"nft_tproxy"}, backend.NFTables, "istio/defaults", "nftables", ""},
	{[]string{"nft_ct"}, backend.NFTables, "istio/tproxy", "", "module nft_ct"},
	{[]string{"nft_nat"}, backend.NFTables, "osm-edge/pod-ip", "", "module nft_nat"},
	{[]string{"nf_tables"}, backend.NFTables, "osm/defaults", "", "CONFIG_NF_TABLES"},
	{[]string{"nf_tables"}, backend.Auto, "osm/defaults", "iptables-legacy", ""},
	{[]string{"nf_tables"}, backend.IPTables, "osm/defaults", "iptables-legacy", ""},
	{[]string{"nft_compat"}, backend.IPTables, "osm/defaults", "iptables-legacy", ""},
	{[]string{"nft_compat"}, backend.Auto, "osm/defaults", "nftables", ""},
	{[]string{"xt_owner"}, backend.IPTables, "osm/defaults", "", "owner"},
	{[]string{"xt_owner"}, backend.Auto, "osm/defaults", "nftables", ""},
	{[]string{"xt_REDIRECT"}, backend.IPTables, "osm/defaults", "", "REDIRECT"},
	{[]string{"xt_TPROXY"}, backend.IPTables, "istio/tproxy", "", "TPROXY"},
	{[]string{"nf_nat"}, backend.Auto, "osm/defaults", "", "nat"},
	{[]string{"nf_conntrack"}, backend.Auto, "osm/defaults", "", "nat"},
	{[]string{"nf_tables", "ip6table_nat"}, backend.Auto, "osm/defaults", "", "ip6table_nat"},
	{[]string{"nf_tables", "iptable_nat"}, backend.Auto, "osm/defaults", "", "iptable_nat"},
	{[]string{"nf_tables", "x_tables"}, backend.Auto, "osm/defaults", "", "nf_tables"},
	{[]string{"nfnetlink"}, backend.Auto, "osm/defaults", "iptables-legacy", ""},
}

// A node lacks modules: ADD takes another backend, or its error names what is missing, says what to do, and nothing is left. Doctor
// said so beforehand.
func TestWhereAModuleIsMissing(t *testing.T) {
	t.Cleanup(func() { hide(t) })
	for _, n := range nodes {
		t.Run(strings.Join(n.modules, "+")+"/"+n.backend+"/"+n.pod, func(t *testing.T) {
			hide(t, n.modules...)
			if loaded := anyLoaded(t, n.modules); loaded != "" {
				t.Skipf("%s is loaded, and stays so", loaded)
			}
			c, rs, families := build(t, n.pod)
			report := examine(t, c.Mesh)
			hide(t, n.modules...) // so that ADD meets what doctor met
			a := newADD(t, n.backend, n.pod)
			took, err := a.run()
			if err != nil {
				t.Logf("@fails %v %s: %v", n.modules, n.backend, err)
			} else {
				t.Logf("@takes %v %s: %s", n.modules, n.backend, took)
			}
			if took != n.takes || err != nil && !strings.Contains(err.Error(), n.says) {
				t.Errorf("ADD took %q, want %q: %v, want %q", took, n.takes, err, n.says)
			}
			if err != nil {
				a.checkNothingLeft()
			}
			checkPrediction(t, n, took, func(variant string) []doctor.Feature { return report.Missing(variant, rs, families) })
		})
	}
}

// checkPrediction wants doctor's features of the backend that ADD took to be there, and one of each other that it preferred not.
func checkPrediction(t *testing.T, n missing, took string, missing func(variant string) []doctor.Feature) {
	t.Helper()
	if took != "" {
		if m := missing(took); len(m) > 0 {
			t.Errorf("%s works, but doctor says that it lacks %s", took, names(m))
		}
		return
	}
	for _, variant := range []string{"iptables-nft", "iptables-legacy", "nftables"} {
		asked := n.backend == backend.Auto || strings.HasPrefix(variant, n.backend)
		if asked && len(missing(variant)) == 0 {
			t.Errorf("ADD fails, but doctor says that %s lacks nothing", variant)
		}
	}
}

const hiddenFile = "/etc/modprobe.d/hidden.conf"

// hide makes the kernel's modules such that these can't be loaded, and unloads all of netfilter.
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
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if left := unload(t); !left {
			return
		}
	}
}

var netfilter = regexp.MustCompile(`^(nf|xt_|x_tables|ip6?t|ip6?_tables|ip_set)`)

// unload removes what nothing uses, and reports whether modules of netfilter are left. Namespaces that are going still use some.
func unload(t *testing.T) (left bool) {
	t.Helper()
	for range 20 {
		text, err := os.ReadFile("/proc/modules")
		if err != nil {
			t.Fatal(err)
		}
		var unused []string
		left = false
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if !netfilter.MatchString(f[0]) {
				continue
			}
			left = true
			if f[2] == "0" {
				unused = append(unused, f[0])
			}
		}
		if len(unused) == 0 || exec.Command("rmmod", unused...).Run() != nil && !left {
			break
		}
	}
	return left
}

func anyLoaded(t *testing.T, modules []string) string {
	t.Helper()
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
