package cniplugin_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/rules"
)

func TestCheckFindsEveryDifference(t *testing.T) {
	for name, c := range map[string]struct{ tamper, want string }{
		"nothing is left":           {"iptables -t nat -F && iptables -t nat -X", "IPv4 nat: chain PROXY_INBOUND is missing"},
		"a rule is missing":         {"iptables -t nat -D PROXY_INBOUND -p tcp --dport 15903 -j RETURN", "IPv4 nat: rule 4 of PROXY_INBOUND is -A PROXY_INBOUND -p tcp -j PROXY_IN_REDIRECT, not -A PROXY_INBOUND -p tcp -m tcp --dport 15903 -j RETURN"},
		"the last is missing":       {"iptables -t nat -D PROXY_OUTPUT 4", "IPv4 nat: rule 4 of PROXY_OUTPUT is missing: -A PROXY_OUTPUT -j PROXY_REDIRECT"},
		"a rule is altered":         {"iptables -t nat -R PROXY_REDIRECT 1 -p tcp -j REDIRECT --to-ports 15009", "IPv4 nat: rule 1 of PROXY_REDIRECT is -A PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 15009, not"},
		"a rule is added":           {"iptables -t nat -A PROXY_OUTPUT -d 9.9.9.9 -j RETURN", "IPv4 nat: rule 5 of PROXY_OUTPUT is not detour's: -A PROXY_OUTPUT -d 9.9.9.9/32 -j RETURN"},
		"a jump is missing":         {"iptables -t nat -D OUTPUT -p tcp -j PROXY_OUTPUT", "IPv4 nat: -A OUTPUT -p tcp -j PROXY_OUTPUT is missing from OUTPUT"},
		"a jump is there twice":     {"iptables -t nat -A PREROUTING -p tcp -j PROXY_INBOUND", "IPv4 nat: -A PREROUTING -p tcp -j PROXY_INBOUND is in PREROUTING 2 times"},
		"a jump is of another form": {"iptables -t nat -A OUTPUT -p udp -j PROXY_OUTPUT", "IPv4 nat: OUTPUT has -A OUTPUT -p udp -j PROXY_OUTPUT, which is not detour's"},
		"only IPv6 differs":         {"ip6tables -t nat -F PROXY_INBOUND", "IPv6 nat: rule 1 of PROXY_INBOUND is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.must("ADD")
			a.must("CHECK")
			a.shell(c.tamper)
			a.fails("CHECK", 101, "pod shop/web: "+c.want)
			a.must("ADD")
			a.must("CHECK")
		})
	}
}

func TestCheckLeavesRulesOfOthersAlone(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.shell("iptables -t nat -N THEIRS; iptables -t nat -A OUTPUT -p udp -j THEIRS")
	a.must("ADD")
	a.must("CHECK")
}

func TestCheckWithoutStateComparesWithWhatAddWouldProgram(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.must("ADD")
	if err := os.RemoveAll(a.path("state")); err != nil {
		t.Fatal(err)
	}
	a.must("CHECK")
	a.shell("iptables -t nat -F PROXY_OUTPUT")
	a.fails("CHECK", 101, "rule 1 of PROXY_OUTPUT is missing")
}

func TestCheckNeedsNoAPIServer(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.must("ADD")
	a.file("manifests.yaml", "nothing of use: [")
	a.must("CHECK")
}

func TestDelRemovesTheRulesAndTheState(t *testing.T) {
	forget := func(a *attachment) {
		if err := os.RemoveAll(a.path("state")); err != nil {
			a.t.Fatal(err)
		}
	}
	for name, spoil := range map[string]func(a *attachment){
		"as it should be":                       func(*attachment) {},
		"without state":                         forget,
		"with state that makes no sense":        func(a *attachment) { a.file("state/attachments/net/c1@eth0.json", "{") },
		"without prevResult":                    func(a *attachment) { delete(a.conf, "prevResult") },
		"with a net conf that is wrong":         func(a *attachment) { a.conf["mesh"], a.conf["timeout"], a.conf["nonsense"] = "x", "x", 1 },
		"without its source":                    func(a *attachment) { a.file("manifests.yaml", "[") },
		"with a prevResult that makes no sense": func(a *attachment) { a.conf["prevResult"] = map[string]any{"cniVersion": "1.1.0", "ips": []any{nil}} },
		"without CNI_ARGS":                      func(a *attachment) { a.env["CNI_ARGS"] = "" },
		"of rules that were tampered with": func(a *attachment) {
			a.shell("iptables -t nat -F PROXY_OUTPUT; iptables -t nat -A OUTPUT -p tcp -j PROXY_OUTPUT; ip6tables -t nat -D OUTPUT 1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.shell("iptables -t nat -A OUTPUT -d 9.9.9.9 -j RETURN")
			a.must("ADD")
			spoil(a)
			a.must("DEL")
			a.must("DEL")
			if got := a.rules(rules.IPv4); !slices.Equal(got, []string{"-A OUTPUT -d 9.9.9.9/32 -j RETURN"}) {
				t.Errorf("left: %q", got)
			}
			if got := append(a.rules(rules.IPv6), a.records()...); len(got) > 0 {
				t.Errorf("left: %q", got)
			}
		})
	}
}

func TestDelSucceedsWhenTheNamespaceIsGone(t *testing.T) {
	for name, path := range map[string]string{"no path": "", "no file": "/run/netns/detour-none", "another file": "/dev/null"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.must("ADD")
			a.env["CNI_NETNS"] = path
			a.must("DEL")
			if got := a.records(); len(got) > 0 {
				t.Errorf("state is left: %q", got)
			}
		})
	}
}

func TestDelDoesNotTouchTheHost(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.env["CNI_NETNS"], a.env["CNI_NETNS_OVERRIDE"] = "/proc/self/ns/net", "1"
	a.must("DEL")
	if lines := a.logged(); len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0]["reason"]), "it is the host's network namespace") {
		t.Errorf("logged %v", lines)
	}
}

func TestGCDropsWhatIsNotAttachedAnyMore(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	for _, k := range [][3]string{{"net", "c1", "eth0"}, {"net", "c1", "eth1"}, {"net", "c2", "eth0"}, {"other", "c3", "eth0"}} {
		a.conf["name"], a.env["CNI_CONTAINERID"], a.env["CNI_IFNAME"] = k[0], k[1], k[2]
		a.must("ADD")
	}
	a.file("state/attachments/net/killed@eth0.json.tmp", "{")
	used, err := netns.Locks(a.path("state"))
	if err != nil {
		t.Fatal(err)
	}
	a.file("state/namespaces/4-1", "") // of a namespace that is gone
	a.conf["name"] = "net"
	a.conf["cni.dev/valid-attachments"] = []map[string]string{{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c9", "ifname": "eth0"}}
	a.must("GC")
	if got, want := a.records(), []string{"net/c1@eth0.json", "other/c3@eth0.json"}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	if got, err := netns.Locks(a.path("state")); err != nil || len(used) != 1 || !slices.Equal(got, used) {
		t.Errorf("there are locks %q, %v, want %q", got, err, used)
	}
	if len(a.rules(rules.IPv4)) == 0 {
		t.Error("GC took rules out of a namespace that is in use")
	}
}

func TestStatusSucceedsWhenAnAddCouldBeServed(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.must("STATUS")
	a.file("manifests.yaml", "[")
	a.fails("STATUS", 50, "detour can't serve an ADD", a.path("manifests.yaml"))
}

func TestVersionsAreThoseOfTheSpecificationSince030(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod())
	if got := string(a.must("VERSION")); !strings.Contains(got, `"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("got %s", got)
	}
	a.conf["cniVersion"] = "0.2.0"
	a.fails("ADD", 1)
}

func TestANetConfThatIsWrongIsRefusedByField(t *testing.T) {
	for want, set := range map[string]map[string]any{
		`mesh: "linkerd" is none of osm`:                                            {"mesh": "linkerd"},
		`mesh: "" is none of osm`:                                                   {"mesh": nil},
		`meshes: there is no such field`:                                            {"meshes": "osm"},
		`extra: there is no such field`:                                             {"meshConfig": map[string]any{"extra": 1}},
		`timeout: got a number, want a string`:                                      {"timeout": 10},
		`timeout: "10" is not a time such as 10s`:                                   {"timeout": "10"},
		`timeout: "-1s" is not a time`:                                              {"timeout": "-1s"},
		`excludeNamespaces: got a string, want a list`:                              {"excludeNamespaces": "kube-system"},
		`meshConfig.namespace: got a number, want a string`:                         {"meshConfig": map[string]any{"namespace": 1}},
		`meshConfig: got a string, want a object`:                                   {"meshConfig": "x"},
		`meshConfig.name: "../x" is not a Kubernetes name`:                          {"meshConfig": map[string]any{"name": "../x"}},
		`backend: "ebpf" is none of auto, iptables`:                                 {"backend": "ebpf"},
		`onError: "ignore" is none of fail, allow`:                                  {"onError": "ignore"},
		`logLevel: "loud" is none of debug, info, warn, error`:                      {"logLevel": "loud"},
		`agentSocket and kubeconfig, one or both, or else manifests are needed`:     {"kubeconfig": "/etc/kubeconfig"},
		`stateDir: it must not be empty`:                                            {"stateDir": ""},
		`backend: "x" is none of auto, iptables, nftables; onError: "y" is none of`: {"backend": "x", "onError": "y"},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			maps.Copy(a.conf, set)
			a.fails("ADD", 7, "network configuration of detour: ", want)
			a.fails("STATUS", 7, want)
			a.untouched()
		})
	}
}

func TestANetConfMayHoldWhatTheSpecificationAndRuntimesPutThere(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["capabilities"] = map[string]bool{"portMappings": true}
	a.conf["runtimeConfig"] = map[string]any{"portMappings": []any{}}
	a.conf["args"] = map[string]any{"cni": map[string]any{}}
	a.conf["dns"] = map[string]any{"nameservers": []string{"10.96.0.10"}}
	a.conf["ipam"] = map[string]any{"type": "host-local"}
	a.conf["timeout"], a.conf["backend"], a.conf["onError"], a.conf["logLevel"] = "1m30s", "iptables", "fail", "debug"
	a.conf["meshConfig"] = map[string]any{"namespace": "mesh", "name": "config"}
	a.must("ADD")
}
