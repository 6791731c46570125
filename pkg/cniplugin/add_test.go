package cniplugin_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

func TestAddPassesPrevResultThroughInTheVersionAskedFor(t *testing.T) {
	for version, ips := range map[string]string{
		"0.3.0": `[{"version":"4","address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1}]`,
		"0.3.1": `[{"version":"4","address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1}]`,
		"0.4.0": `[{"version":"4","address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1}]`,
		"1.0.0": `[{"address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1}]`,
		"1.1.0": `[{"address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1}]`,
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			var want map[string]any
			err := json.Unmarshal(fmt.Appendf(nil, `{"cniVersion":%q,
				"interfaces":[{"name":"cni0","mac":"00:11:22:33:44:55"},{"name":"eth0","mac":"99:88:77:66:55:44","sandbox":%q}],
				"ips":%s,"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"}],
				"dns":{"nameservers":["10.96.0.10"],"search":["shop.svc"]}}`, version, a.ns.Path(), ips), &want)
			if err != nil {
				t.Fatal(err)
			}
			a.conf["cniVersion"], a.conf["prevResult"] = version, want
			var got map[string]any
			if err := json.Unmarshal(a.must("ADD"), &got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if len(a.rules(rules.IPv4)) == 0 {
				t.Error("nothing was programmed")
			}
		})
	}
}

func TestAddProgramsTheFamiliesOfThePodsAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		addresses []string
		want      []rules.Family
	}{
		"IPv4":              {[]string{"10.1.0.5/16"}, []rules.Family{rules.IPv4}},
		"IPv6":              {[]string{"fd00::5/64"}, []rules.Family{rules.IPv6}},
		"both":              {[]string{"fd00::5/64", "10.1.0.5/16"}, []rules.Family{rules.IPv4, rules.IPv6}},
		"two of one family": {[]string{"10.1.0.5/16", "10.2.0.5/16"}, []rules.Family{rules.IPv4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["prevResult"] = prevResult(c.addresses...)
			a.must("ADD")
			for _, f := range rules.Families {
				if got, want := len(a.rules(f)) > 0, slices.Contains(c.want, f); got != want {
					t.Errorf("%s programmed: %v, want %v", f, got, want)
				}
			}
			a.must("CHECK")
		})
	}
}

func TestAddSendsRealPacketsToTheProxy(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(`outbound-port-exclusion-list: "8080"`), meshConfig)
	w := nettest.StartWorld(t)
	a.ns, a.env["CNI_NETNS"] = w.Pod, w.Pod.Path()
	a.must("ADD")
	packets, err := nettest.ParsePackets(`
		out 1.1.1.1:80 -> proxy 15001
		out [2001:db8::1]:80 -> proxy 15001
		out 1.1.1.1:6379 -> outside
		out 1.1.1.1:8080 -> outside
		out 1.1.1.1:80 uid=1500 -> outside
		in 80 -> proxy 15003
		in 15010 -> app`)
	if err != nil {
		t.Fatal(err)
	}
	nettest.CheckPackets(t, w, packets, 15001, 15003)
}

func TestAddAgainLeavesTheSameRules(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.must("ADD")
	four, six := a.rules(rules.IPv4), a.rules(rules.IPv6)
	for range 3 {
		a.must("ADD")
	}
	if got := a.rules(rules.IPv4); !slices.Equal(got, four) {
		t.Errorf("IPv4 changed from %q to %q", four, got)
	}
	if got := a.rules(rules.IPv6); !slices.Equal(got, six) {
		t.Errorf("IPv6 changed from %q to %q", six, got)
	}
}

func TestAddAtTheSameTimeInOneNamespaceProgramsOnce(t *testing.T) {
	t.Parallel()
	a, one := newAttachment(t, meshedPod(), meshConfig), newAttachment(t, meshedPod(), meshConfig)
	one.must("ADD")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if out, err := a.command("ADD").Output(); err != nil {
				t.Errorf("ADD: %v: %s", err, out)
			}
		})
	}
	all.Wait()
	if got, want := a.rules(rules.IPv4), one.rules(rules.IPv4); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAddWritesOneLogLine(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod())
	a.must("ADD")
	lines := a.logged()
	if len(lines) != 1 {
		t.Fatalf("%d lines: %v", len(lines), lines)
	}
	for field, want := range map[string]any{
		"level": "WARN", "verb": "ADD", "pod": "shop/web", "mesh": "osm", "outcome": "programmed", "rules": float64(26),
		"families": []any{"IPv4", "IPv6"},
		"warnings": []any{"MeshConfig osm-system/osm-mesh-config is not in " + a.path("manifests.yaml") + ": the mesh's defaults hold"},
	} {
		if !reflect.DeepEqual(lines[0][field], want) {
			t.Errorf("%s is %v, want %v", field, lines[0][field], want)
		}
	}
	took, _ := lines[0]["ms"].(map[string]any)
	for _, stage := range []string{"conf", "lookup", "decide", "enter", "apply", "save", "total"} {
		if ms, ok := took[stage].(float64); !ok || ms <= 0 {
			t.Errorf("stage %s took %v ms", stage, took[stage])
		}
	}
}

func TestAddLeavesAloneWithAReason(t *testing.T) {
	closed := func(a *attachment) { // no request may be made
		delete(a.conf, "manifests")
		a.conf["kubeconfig"] = a.path("kubeconfig")
		a.file("kubeconfig", kubeconfig("https://127.0.0.1:1", nil, "token: x"))
	}
	for name, c := range map[string]struct {
		pod   string
		setup func(a *attachment)
		want  string
	}{
		"no Kubernetes pod": {"", func(a *attachment) { closed(a); a.env["CNI_ARGS"] = "" }, "it is not a Kubernetes pod"},
		"a container of podman": {"", func(a *attachment) {
			closed(a)
			a.env["CNI_ARGS"] = "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=web"
		}, "it is not a Kubernetes pod"},
		"a container of podman with a name that Kubernetes has not": {"", func(a *attachment) {
			closed(a)
			a.env["CNI_ARGS"] = "IgnoreUnknown=1;K8S_POD_NAME=Web_1"
		}, "it is not a Kubernetes pod"},
		"a namespace that is excluded": {"", func(a *attachment) { closed(a); a.conf["excludeNamespaces"] = []string{"shop"} }, "namespace shop is excluded"},
		"kube-system by default": {"", func(a *attachment) {
			closed(a)
			a.env["CNI_ARGS"] = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns"
		}, "namespace kube-system is excluded"},
		"a pod without a sidecar":    {`{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1}, spec: {containers: [{name: app}]}}`, nil, `it has no container "envoy"`},
		"a pod that programs itself": {`{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1}, spec: {initContainers: [{name: osm-init, securityContext: {capabilities: {add: [NET_ADMIN]}}}], containers: [{name: app}, {name: envoy}]}}`, nil, `its init container "osm-init" programs the pod itself`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, c.pod, meshConfig)
			if c.setup != nil {
				c.setup(a)
			}
			a.must("ADD")
			for _, f := range rules.Families {
				if got := a.rules(f); len(got) > 0 {
					t.Errorf("%s has rules: %q", f, got)
				}
			}
			lines := a.logged()
			if len(lines) != 1 || lines[0]["outcome"] != "skipped" || !strings.Contains(fmt.Sprint(lines[0]["reason"]), c.want) {
				t.Errorf("logged %v, want one line with the reason %q", lines, c.want)
			}
			a.must("CHECK")
			a.must("DEL")
			a.untouched()
		})
	}
}

func TestAddRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		pod   string
		setup func(a *attachment)
		code  uint
		want  string
	}{
		"a malformed annotation": {meshedPod(`outbound-port-exclusion-list: "6379,70000"`), nil, 100,
			`pod shop/web: openservicemesh.io/outbound-port-exclusion-list: entry 2 "70000": a port is 1 to 65535`},
		"an application that runs as the proxy": {strings.Replace(meshedPod(), "name: app", "name: app, securityContext: {runAsUser: 1500}", 1), nil, 100,
			`pod shop/web: container "app" runs as UID 1500, which is the proxy's`},
		"another pod of the same name": {strings.Replace(meshedPod(), "uid-1", "uid-2", 1), nil, 100,
			"pod shop/web: the runtime starts UID uid-1, but the API server has UID uid-2"},
		"a pod that is not there": {meshConfig, nil, 999, "shop/web"},
		"the host's namespace": {meshedPod(), func(a *attachment) {
			a.env["CNI_NETNS"] = "/proc/self/ns/net"
			a.env["CNI_NETNS_OVERRIDE"] = "1"
		}, 8, "it is the host's network namespace"},
		"a namespace that is gone":        {meshedPod(), func(a *attachment) { a.env["CNI_NETNS"] = "/run/netns/detour-none" }, 8, "there is no network namespace"},
		"a namespace of another kind":     {meshedPod(), func(a *attachment) { a.env["CNI_NETNS"] = "/proc/self/ns/uts" }, 8, "there is no network namespace"},
		"a file that is no namespace":     {meshedPod(), func(a *attachment) { a.env["CNI_NETNS"] = a.path("manifests.yaml") }, 8, "there is no network namespace"},
		"no prevResult":                   {meshedPod(), func(a *attachment) { delete(a.conf, "prevResult") }, 7, "prevResult is missing"},
		"a prevResult without an address": {meshedPod(), func(a *attachment) { a.conf["prevResult"] = prevResult() }, 7, "prevResult has no address"},
		"a pod name that is none":         {meshedPod(), func(a *attachment) { a.env["CNI_ARGS"] = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../web" }, 4, `K8S_POD_NAME "../web" is not a Kubernetes name`},
		"half an identity":                {meshedPod(), func(a *attachment) { a.env["CNI_ARGS"] = "K8S_POD_NAMESPACE=shop" }, 4, `K8S_POD_NAME "" is not a Kubernetes name`},
		"arguments that are none":         {meshedPod(), func(a *attachment) { a.env["CNI_ARGS"] = "x" }, 4, "CNI_ARGS"},
		"a state folder that is none":     {meshedPod(), func(a *attachment) { a.conf["stateDir"] = a.path("manifests.yaml") }, 999, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, c.pod, meshConfig)
			if c.setup != nil {
				c.setup(a)
			}
			if c.pod == meshConfig {
				a.file("manifests.yaml", meshConfig)
			}
			a.fails("ADD", c.code, c.want)
			a.untouched()
		})
	}
}

func TestAPodThatIsNotProgrammedWithoutItsToolsDoesNotStart(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["backend"] = "iptables"
	a.env["PATH"] = a.dir
	a.fails("ADD", 999, "no iptables-restore", "install the package iptables")
	a.fails("STATUS", 50, "no iptables-restore")
	a.must("DEL")
	a.untouched()
}

func TestALogThatCantBeOpenedKeepsNoPodFromStarting(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["logFile"] = "/proc/none/log"
	a.must("ADD")
}

// A pod costs one program for each family: that the namespace has no rules yet is known without one.
func TestAddStartsOneProgramForEachFamily(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.env["PATH"] = countingPath(t, a.path("started"))
	a.must("ADD")
	started, err := os.ReadFile(a.path("started"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(started)); !slices.Equal(slices.Sorted(slices.Values(got)), []string{"ip6tables-nft-restore", "iptables-nft-restore"}) {
		t.Errorf("started %q", got)
	}
}

// countingPath is a folder of scripts that write down their names and go on as iptables.
func countingPath(t *testing.T, log string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore"} {
		nettest.RequireProgram(t, name)
		script := fmt.Sprintf("#!/bin/sh\necho %s >>%s\nPATH=/usr/sbin:/sbin:/usr/bin:/bin exec %s \"$@\"\n", name, log, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheWholeChainOfVerbsOnAHostWithLegacyIptables(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.env["PATH"] = legacyPath(t)
	a.must("STATUS")
	a.must("ADD")
	a.must("ADD")
	a.must("CHECK")
	if lines := a.logged(); lines[0]["backend"] != "iptables-legacy" {
		t.Errorf("logged %v", lines)
	}
	a.shell("iptables-legacy -w -t nat -S | grep -c -- '-A OUTPUT -p tcp -j PROXY_OUTPUT' | grep -qx 1")
	a.shell("iptables-legacy -w -t nat -F PROXY_OUTPUT")
	a.fails("CHECK", 101, "rule 1 of PROXY_OUTPUT is missing")
	a.must("DEL")
	a.shell("! iptables-legacy -w -t nat -S | grep PROXY")
}
