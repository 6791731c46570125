package cniplugin_test

import (
	"maps"
	"os"
	"strings"
	"testing"
)

// another is an attachment of the same pod by another interface, to a network of its own, as Multus has it.
func (a *attachment) another(ifName string, addresses ...string) *attachment {
	b := *a
	b.conf, b.env = maps.Clone(a.conf), maps.Clone(a.env)
	b.conf["name"], b.env["CNI_IFNAME"] = "of-"+ifName, ifName
	b.conf["prevResult"] = prevResult(addresses...)
	return &b
}

// same expects that the namespace holds what it did.
func (a *attachment) same(what, want string) {
	a.t.Helper()
	if got := a.holds(); got != want {
		a.t.Errorf("%s: the namespace holds\n%s\nnot\n%s", what, got, want)
	}
}

// empty expects that the namespace, the state and the locks hold nothing.
func (a *attachment) empty() {
	a.t.Helper()
	a.same("at the end", a.nothing())
	if got := a.records(); len(got) > 0 {
		a.t.Errorf("state is left: %q", got)
	}
	if locks, _ := os.ReadDir(a.path("state/namespaces")); len(locks) > 0 {
		a.t.Errorf("a lock is left: %v", locks)
	}
}

// eachBackend runs a test of a pod whose first interface's net conf says backend.
func eachBackend(t *testing.T, test func(t *testing.T, eth0 *attachment)) {
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["backend"] = backend
			test(t, a)
		})
	}
}

func TestAnotherInterfaceLeavesTheRules(t *testing.T) {
	eachBackend(t, func(_ *testing.T, eth0 *attachment) {
		net1 := eth0.another("net1", "192.168.7.2/24")
		eth0.must("ADD")
		both := eth0.holds()
		net1.must("ADD")
		eth0.same("ADD of net1 has no IPv6 address", both)
		eth0.must("CHECK")
		net1.must("CHECK")
		eth0.must("ADD")
		eth0.same("ADD of eth0 again", both)
		net1.must("DEL")
		eth0.same("DEL of net1", both)
		eth0.must("CHECK")
		eth0.must("DEL")
		eth0.empty()
	})
}

func TestAnotherInterfaceWidensTheRules(t *testing.T) {
	eachBackend(t, func(t *testing.T, eth0 *attachment) {
		alone := newAttachment(t, meshedPod(), meshConfig)
		alone.conf["backend"] = eth0.conf["backend"]
		alone.must("ADD")
		both := alone.holds()
		eth0.conf["prevResult"] = prevResult("10.77.0.2/24")
		net1, net2 := eth0.another("net1", "fd99::2/64"), eth0.another("net2")
		for _, a := range []*attachment{eth0, net1, net2} {
			a.must("ADD")
		}
		eth0.same("ADD of net1", both)
		for _, a := range []*attachment{eth0, net1, net2} {
			a.must("CHECK")
		}
		eth0.must("DEL")
		eth0.same("DEL of eth0", both)
		net2.must("DEL")
		net1.must("CHECK")
		net1.must("DEL")
		eth0.empty()
	})
}

// The first address's interface is the first that was added, however often an ADD is repeated: PodIP mode shows it.
func TestTheAddressesAreInTheOrderOfTheFirstAdds(t *testing.T) {
	t.Parallel()
	eth0 := newAttachment(t, meshedPod(), strings.Replace(meshConfig, "spec: {", "spec: {sidecar: {localProxyMode: PodIP}, ", 1))
	eth0.conf["mesh"] = "osm-v1"
	net1 := eth0.another("net1", "192.168.7.2/24")
	eth0.must("ADD")
	want := eth0.holds()
	if !strings.Contains(want, "--to-destination 10.77.0.2") {
		t.Fatalf("the namespace holds %s", want)
	}
	for range 2 {
		net1.must("ADD")
		eth0.must("ADD")
	}
	eth0.same("after more ADDs", want)
}

func TestAnotherInterfaceThatIsLeftAloneUndoesNothing(t *testing.T) {
	eachBackend(t, func(_ *testing.T, eth0 *attachment) {
		net1 := eth0.another("net1", "192.168.7.2/24")
		net1.conf["excludeNamespaces"] = []string{"shop"}
		eth0.must("ADD")
		both := eth0.holds()
		for _, verb := range []string{"ADD", "CHECK", "ADD", "DEL"} {
			net1.must(verb)
			eth0.same(verb+" of net1", both)
			eth0.must("CHECK")
		}
		// It may have been programmed before: then it leaves what the other holds.
		delete(net1.conf, "excludeNamespaces")
		net1.must("ADD")
		net1.conf["excludeNamespaces"] = []string{"shop"}
		net1.must("ADD")
		eth0.same("net1 is left alone", both)
		eth0.must("DEL")
		eth0.same("DEL of eth0", eth0.nothing())
		net1.must("DEL")
		eth0.empty()
	})
}

// An interface that was left alone has addresses of the pod all the same.
func TestTheAddressesOfAnInterfaceThatWasLeftAloneCount(t *testing.T) {
	t.Parallel()
	eth0, alone := newAttachment(t, meshedPod(), meshConfig), newAttachment(t, meshedPod(), meshConfig)
	alone.must("ADD")
	net1 := eth0.another("net1", "192.168.7.2/24")
	eth0.conf["excludeNamespaces"] = []string{"shop"}
	eth0.must("ADD")
	net1.must("ADD")
	eth0.same("ADD of net1", alone.holds())
	net1.must("DEL")
	eth0.must("DEL")
	eth0.empty()
}

func TestTwoMeshesThatWantOnePodAreAnErrorThatChangesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, eth0 *attachment) {
		eth0.file("manifests.yaml", strings.Replace(istioPod(), "containers: [", "containers: [{name: envoy, securityContext: {runAsUser: 1500}}, ", 1)+"\n---\n"+meshConfig)
		net1 := eth0.another("net1", "192.168.7.2/24")
		net1.conf["mesh"], net1.conf["onError"] = "istio", "allow"
		eth0.must("ADD")
		both, records := eth0.holds(), eth0.records()
		net1.fails("ADD", 100, `pod shop/web`, `network "net" has it in mesh osm by interface eth0`, `network "of-net1" wants it in mesh istio`)
		eth0.same("the second mesh", both)
		if got := eth0.records(); len(got) != len(records) {
			t.Errorf("there are records %q", got)
		}
		eth0.must("CHECK")
		net1.must("DEL")
		eth0.same("DEL of net1", both)
		eth0.must("DEL")
		net1.must("ADD")
		net1.must("DEL")
		eth0.empty()
	})
}

func TestAFailureOfAnotherInterfaceLeavesWhatTheFirstProgrammed(t *testing.T) {
	eachBackend(t, func(t *testing.T, eth0 *attachment) {
		net1 := eth0.another("net1", "fd99::2/64")
		eth0.conf["prevResult"] = prevResult("10.77.0.2/24")
		eth0.must("ADD")
		four, records := eth0.holds(), eth0.records()
		net1.conf["backend"] = "iptables"
		net1.env["PATH"] = failingIPv6(t) + ":" + os.Getenv("PATH")
		net1.fails("ADD", 999, "no IPv6 here")
		eth0.same("ADD of net1 failed", four)
		if got := eth0.records(); len(got) != len(records) {
			t.Errorf("there are records %q", got)
		}
		eth0.must("CHECK")
		eth0.must("DEL")
		net1.must("DEL")
		eth0.empty()
	})
}

// failingIPv6 is a folder in which ip6tables-restore always fails.
func failingIPv6(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"ip6tables-nft-restore", "ip6tables-legacy-restore"} {
		if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/sh\necho no IPv6 here >&2\nexit 2\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The second network may choose another backend: there is one set of rules in the end, and each record says which.
func TestAnotherInterfaceMayHaveAnotherBackend(t *testing.T) {
	eachBackend(t, func(t *testing.T, eth0 *attachment) {
		net1 := eth0.another("net1", "192.168.7.2/24")
		net1.conf["backend"] = map[any]string{"iptables": "nftables", "nftables": "iptables"}[eth0.conf["backend"]]
		eth0.must("ADD")
		net1.must("ADD")
		eth0.must("CHECK")
		net1.must("CHECK")
		alone := newAttachment(t, meshedPod(), meshConfig)
		alone.conf["backend"] = net1.conf["backend"]
		alone.must("ADD")
		eth0.same("ADD of net1", alone.holds())
		net1.must("DEL")
		eth0.must("CHECK")
		eth0.must("DEL")
		eth0.empty()
	})
}

// Whoever's record is lost, the rules stay as long as the other's says or may say that they are its own.
func TestDelOfAnInterfaceWhoseRecordIsLost(t *testing.T) {
	eachBackend(t, func(_ *testing.T, eth0 *attachment) {
		net1 := eth0.another("net1", "192.168.7.2/24")
		eth0.must("ADD")
		both := eth0.holds()
		for _, spoil := range []func(){
			func() { os.Remove(eth0.path("state/attachments/of-net1/c1@net1.json")) },
			func() { eth0.file("state/attachments/of-net1/c1@net1.json", "{") },
			func() { eth0.file("state/attachments/net/c1@eth0.json", "{") },
		} {
			net1.must("ADD")
			spoil()
			net1.must("DEL")
			eth0.same("DEL of net1", both)
		}
		eth0.must("ADD")
		eth0.same("ADD of eth0", both)
		eth0.must("DEL")
		eth0.empty()
	})
}

// As Multus drives it, by libcni: a cluster network with detour, and another whose definition has detour as well.
func TestLibcniAddsAndDeletesASecondInterface(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	n := startNode(t, a)
	first, second := n.network("1.0.0", "net", "cni0", "10.88.0.0/24", "fd88::/64"), n.network("0.4.0", "other", "cni1", "10.99.0.0/24")
	eth0, net1 := a.runtimeConf("eth0"), a.runtimeConf("net1")
	n.add(first, eth0)
	both := a.holds()
	n.add(second, net1)
	a.same("ADD of net1", both)
	n.check(first, eth0)
	n.check(second, net1)
	n.del(second, net1)
	a.same("DEL of net1", both)
	n.check(first, eth0)
	n.del(first, eth0)
	a.empty()
}

// The node agent may have repaired the sandbox that the pod had before. What it wrote down then is about another namespace.
func TestARepairOfAnEarlierSandboxIsOfAnotherNamespace(t *testing.T) {
	eachBackend(t, func(t *testing.T, eth0 *attachment) {
		const repaired = "detour-repair/uid-1@net9.json"
		if err := os.MkdirAll(eth0.path("state/attachments/detour-repair"), 0o700); err != nil {
			t.Fatal(err)
		}
		eth0.file("state/attachments/"+repaired, `{"network":"detour-repair","containerID":"uid-1","ifName":"net9","netns":"/run/netns/before",
			"namespaceID":"0-1","pod":"shop/web","podUID":"uid-1","mesh":"osm","outcome":"programmed"}`)
		for range 2 {
			eth0.must("ADD")
		}
		eth0.must("DEL")
		eth0.same("DEL", eth0.nothing())
		if got := eth0.records(); len(got) != 1 || got[0] != repaired {
			t.Errorf("the records are %q", got)
		}
	})
}
