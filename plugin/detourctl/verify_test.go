package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
	"github.com/detour-cni/detour/pkg/verify"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// programmed is a pod as ADD leaves it, and its record. Its sidecar listens.
func programmed(t *testing.T, stateDir, choice string) *nettest.Namespace {
	t.Helper()
	pod := nettest.StartNamespace(t, "pod")
	ns, err := netns.Open(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	decision, err := testcase.Find(t, "../..", "osm/guide").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	r := attachment.Record{
		Key:   attachment.Key{Network: "net", ContainerID: choice, IfName: "eth0"},
		Netns: pod.Path(), Pod: "shop/" + choice, Mesh: "osm", Outcome: attachment.Programmed,
		Addresses: []netip.Addr{nettest.PodIPv4, nettest.PodIPv6}, Asked: redirect.AskedOf(decision.Policy),
	}
	err = ns.Do(func() error {
		program, err := backend.Prepare(t.Context(), choice, decision.Policy.Ruleset(), rules.Families)
		if err != nil {
			return err
		}
		program.Keep(&r)
		return program.Apply(t.Context(), nil, attachment.Record{})
	})
	if err != nil {
		t.Fatal(err)
	}
	save(t, stateDir, r)
	for _, port := range []uint16{15001, 15003} {
		listener, err := nettest.Process{Namespace: pod, UID: 1500, GID: 1500}.Listen(port, nettest.Named("proxy"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
	}
	return pod
}

func save(t *testing.T, stateDir string, r attachment.Record) {
	t.Helper()
	if err := attachment.NewStore(stateDir).Save(r); err != nil {
		t.Fatal(err)
	}
}

// runVerify returns what the verb prints, with single blanks, and its exit code.
func runVerify(t *testing.T, dir string, args ...string) (out string, code int, err error) {
	t.Helper()
	var stdout bytes.Buffer
	c := verifyCommand()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(append([]string{"--state-dir", dir, "--cni-conf-dir", dir}, args...))
	c.SetOut(&stdout)
	err = c.ExecuteContext(t.Context())
	if ended, ok := errors.AsType[codeError](err); ok {
		code = ended.code
	} else if err != nil {
		code = exitFailed
	}
	return regexp.MustCompile(`(\S) +`).ReplaceAllString(stdout.String(), "$1 "), code, err
}

func TestVerifyTellsPodsThatDifferFromThoseThatDoNot(t *testing.T) {
	nettest.RequireNetns(t)
	dir := t.TempDir()
	changed := programmed(t, dir, backend.IPTables)
	programmed(t, dir, backend.NFTables)
	c := testcase.Find(t, "../..", "osm/guide")
	manifests := c.Manifests(t)
	pod, err := os.ReadFile(filepath.Join(manifests, "pod.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var both []string
	for _, name := range []string{"iptables", "nftables"} {
		text := strings.Replace(string(pod), "name: web\n", "name: "+name+"\n", 1)
		both = append(both, text+"status:\n  containerStatuses: [{name: envoy, ready: true}]\n")
	}
	if err := os.WriteFile(filepath.Join(manifests, "pod.yaml"), []byte(strings.Join(both, "---\n")), 0o600); err != nil {
		t.Fatal(err)
	}

	out, code, err := runVerify(t, dir, "shop/iptables", "shop/nftables", "--manifests", manifests)
	if want := "POD BACKEND RULES STATE\nshop/iptables iptables-nft 30 fine\nshop/nftables nftables 13 fine\n"; code != 0 || out != want {
		t.Errorf("got %d, %v\n%s", code, err, out)
	}
	out, code, err = runVerify(t, dir)
	if want := "shop/nftables nftables 13 not everything could be checked\n  not checked: configuration: what the mesh wants of the pod today is not known: no file in " + dir; code != exitUnknown || !strings.Contains(out, want) {
		t.Errorf("got %d, %v\n%s", code, err, out)
	}

	err = changed.Do(func() error { return exec.Command("iptables-nft", "-t", "nat", "-F", "PROXY_IN_REDIRECT").Run() })
	if err != nil {
		t.Fatal(err)
	}
	want := "shop/iptables iptables-nft 30 1 finding\n" +
		"  rule-missing: IPv4 nat: rule 1 of PROXY_IN_REDIRECT is missing: -A PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15003\n" +
		"    -> recreate the pod; find out who changed it: it takes NET_ADMIN\n"
	out, code, err = runVerify(t, dir, "shop/iptables", "--manifests", manifests)
	if code != exitFinding || !strings.Contains(out, want) {
		t.Errorf("got %d, %v\n%s", code, err, out)
	}

	out, code, err = runVerify(t, dir, "shop/iptables", "--manifests", manifests, "-o", "json")
	var report verify.Report
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil || code != exitFinding {
		t.Fatalf("got %d, %v, %v\n%s", code, err, jsonErr, out)
	}
	if p := report.Pods[0]; report.Result != verify.Wrong || p.Pod != "shop/iptables" || p.Findings[0].Name != verify.RuleMissing || !strings.Contains(out, `"unknown": []`) {
		t.Errorf("got %s", out)
	}
}

func TestVerifySaysThatAPodIsLeftAloneOrGone(t *testing.T) {
	nettest.RequireNetns(t)
	dir := t.TempDir()
	pod := nettest.StartNamespace(t, "pod")
	save(t, dir, attachment.Record{Key: attachment.Key{Network: "net", ContainerID: "a", IfName: "eth0"}, Netns: pod.Path(), Pod: "shop/job", Outcome: attachment.Skipped, Reason: `it has no container "envoy"`})
	out, code, err := runVerify(t, dir)
	if code != 0 || !strings.Contains(out, `shop/job skipped: it has no container "envoy"`) {
		t.Errorf("got %d, %v\n%s", code, err, out)
	}
	save(t, dir, attachment.Record{Key: attachment.Key{Network: "net", ContainerID: "b", IfName: "eth0"}, Netns: "/run/netns/gone", Pod: "shop/web", Outcome: attachment.Programmed})
	out, code, err = runVerify(t, dir)
	if code != exitFinding || !strings.Contains(out, "pod-gone: there is no network namespace /run/netns/gone any more") {
		t.Errorf("got %d, %v\n%s", code, err, out)
	}
	if _, code, err := runVerify(t, dir, "shop/web"); code != exitFailed || !strings.Contains(err.Error(), "the pod is gone: shop/web") {
		t.Errorf("got %d, %v", code, err)
	}
}

func TestVerifyRefusesWhatMakesNoSense(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string][]string{
		`"web" is not NAMESPACE/NAME`:            {"web"},
		`"/web" is not NAMESPACE/NAME`:           {"/web"},
		"--pod-uid: name one pod":                {"--pod-uid", "x"},
		"no pod shop/web on this node":           {"shop/web"},
		`--output: "yaml" is neither text nor`:   {"-o", "yaml"},
		"read manifests: stat /nowhere: no such": {"--manifests", "/nowhere"},
	} {
		if out, code, err := runVerify(t, dir, args...); code != exitFailed || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %d, %v\n%s", args, code, err, out)
		}
	}
}

func TestVerifyOfAnEmptyNodeSaysSo(t *testing.T) {
	var out bytes.Buffer
	if err := printReport(screen{Writer: &out}, verify.Report{}, false); err != nil || !strings.HasPrefix(out.String(), "no pods: ") {
		t.Errorf("%v: %s", err, out.String())
	}
}
