package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// programmed is a pod as ADD leaves it, and its record.
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
		Netns: pod.Path(), Pod: "shop/" + choice, Outcome: attachment.Programmed,
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
	return pod
}

func save(t *testing.T, stateDir string, r attachment.Record) {
	t.Helper()
	if err := attachment.NewStore(stateDir).Save(r); err != nil {
		t.Fatal(err)
	}
}

func verify(t *testing.T, stateDir string, pods ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := verifyOptions{stateDir}.verify(t.Context(), &out, pods)
	return regexp.MustCompile(" +").ReplaceAllString(out.String(), " "), err
}

func TestVerifyTellsPodsThatDifferFromThoseThatDoNot(t *testing.T) {
	nettest.RequireNetns(t)
	dir := t.TempDir()
	changed := programmed(t, dir, backend.IPTables)
	programmed(t, dir, backend.NFTables)
	save(t, dir, attachment.Record{Key: attachment.Key{Network: "net", ContainerID: "c", IfName: "eth0"}, Pod: "shop/job", Outcome: attachment.Skipped, Reason: "it has no container \"envoy\""})

	out, err := verify(t, dir)
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"POD BACKEND RULES STATE\n", "shop/iptables iptables-nft 30 as programmed\n", "shop/nftables nftables 13 as programmed\n", "shop/job 0 skipped: it has no container"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}

	err = changed.Do(func() error { return exec.Command("iptables-nft", "-t", "nat", "-F", "PROXY_INBOUND").Run() })
	if err != nil {
		t.Fatal(err)
	}
	out, err = verify(t, dir)
	if !errors.Is(err, errDifferent) || !strings.Contains(out, "rule 1 of PROXY_INBOUND is missing") {
		t.Errorf("got %v\n%s", err, out)
	}
	if out, err := verify(t, dir, "shop/nftables"); err != nil || strings.Contains(out, "iptables") {
		t.Errorf("got %v\n%s", err, out)
	}
	if _, err := verify(t, dir, "shop/other"); err == nil || !strings.Contains(err.Error(), "has no record of pod shop/other") {
		t.Errorf("got %v", err)
	}
}

func TestVerifySaysThatAPodsNamespaceIsGone(t *testing.T) {
	dir := t.TempDir()
	save(t, dir, attachment.Record{Key: attachment.Key{Network: "net", ContainerID: "c", IfName: "eth0"}, Netns: "/run/netns/gone", Pod: "shop/web", Outcome: attachment.Programmed})
	if out, err := verify(t, dir); !errors.Is(err, errDifferent) || !strings.Contains(out, "there is no network namespace") {
		t.Errorf("got %v\n%s", err, out)
	}
}
