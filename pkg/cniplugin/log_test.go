package cniplugin_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Each outcome has its line, by whose event an operator or a script finds it.
func TestEveryOutcomeHasItsLine(t *testing.T) {
	unreadable := func(a *attachment) { a.file("manifests.yaml", "[") }
	allow := func(a *attachment) { a.conf["onError"] = "allow" }
	for event, c := range map[string]struct {
		ahead    []string            // verbs that succeed before
		spoil    func(a *attachment) // what the verb meets
		verb     string
		level    string
		message  string
		says     map[string]string // fields and part of what they say
		nameless bool              // a verb without a container
	}{
		"add-programmed": {verb: "ADD", level: "INFO", message: "pod programmed",
			says: map[string]string{"mesh": "osm", "outcome": "programmed", "backend": "iptables", "rules": "28", "families": "[IPv4 IPv6]"}},
		"add-skipped": {spoil: func(a *attachment) { a.conf["excludeNamespaces"] = []string{"shop"} }, verb: "ADD", level: "INFO", message: "pod left alone",
			says: map[string]string{"mesh": "osm", "outcome": "skipped", "reason": "namespace shop is excluded"}},
		"add-allowed": {spoil: func(a *attachment) { allow(a); unreadable(a) }, verb: "ADD", level: "ERROR", message: "pod starts UNMESHED: onError is allow",
			says: map[string]string{"mesh": "osm", "outcome": "allowed", "code": "999", "reason": "manifests.yaml"}},
		"add-kept": {ahead: []string{"ADD"}, spoil: func(a *attachment) { allow(a); unreadable(a) }, verb: "ADD", level: "ERROR",
			message: "pod starts as an earlier ADD programmed it: onError is allow",
			says:    map[string]string{"mesh": "osm", "outcome": "programmed", "code": "999", "reason": "manifests.yaml", "rules": "28"}},
		"add-failed": {spoil: func(a *attachment) { a.file("manifests.yaml", meshedPod(`outbound-port-exclusion-list: "x"`)) }, verb: "ADD", level: "ERROR", message: "pod does not start",
			says: map[string]string{"mesh": "osm", "outcome": "failed", "code": "100", "reason": "openservicemesh.io/outbound-port-exclusion-list"}},
		"del-done": {ahead: []string{"ADD"}, verb: "DEL", level: "INFO", message: "pod deleted"},
		"del-incomplete": {spoil: func(a *attachment) { a.env["CNI_NETNS"], a.env["CNI_NETNS_OVERRIDE"] = "/proc/self/ns/net", "1" }, verb: "DEL", level: "WARN", message: "pod deleted, but not all of it could be removed",
			says: map[string]string{"reason": "it is the host's network namespace"}},
		"check-different": {ahead: []string{"ADD"}, spoil: func(a *attachment) { a.shell("iptables -t nat -F PROXY_INBOUND; ip6tables -t nat -F PROXY_INBOUND") }, verb: "CHECK", level: "ERROR",
			message: "rules differ from those that ADD programmed",
			says:    map[string]string{"code": "101", "differences": "IPv6 nat: rule 1 of PROXY_INBOUND is missing"}},
		"check-failed": {spoil: unreadable, verb: "CHECK", level: "ERROR", message: "CHECK failed", says: map[string]string{"code": "999", "reason": "manifests.yaml"}},
		"gc-failed": {spoil: func(a *attachment) { a.file("state", "") }, verb: "GC", level: "ERROR", message: "GC failed", nameless: true,
			says: map[string]string{"code": "999", "reason": "not a directory"}},
		"status-failed": {spoil: func(a *attachment) { unreadable(a); a.conf["logLevel"] = "debug" }, verb: "STATUS", level: "DEBUG", message: "STATUS failed", nameless: true,
			says: map[string]string{"code": "50", "reason": "detour can't serve an ADD"}},
	} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			for _, verb := range c.ahead {
				a.must(verb)
			}
			if c.spoil != nil {
				c.spoil(a)
			}
			if c.nameless {
				delete(a.env, "CNI_CONTAINERID")
				delete(a.env, "CNI_NETNS")
				delete(a.env, "CNI_ARGS")
			}
			_, _ = a.run(c.verb)
			lines := a.logged()
			if len(lines) != len(c.ahead)+1 {
				t.Fatalf("%d lines: %v", len(lines), lines)
			}
			line := lines[len(lines)-1]
			want := map[string]string{"event": event, "level": c.level, "msg": c.message, "verb": c.verb, "version": "development", "commit": "unknown"}
			if !c.nameless {
				want["containerID"], want["netns"], want["pod"], want["podUID"] = "c1", a.env["CNI_NETNS"], "shop/web", "uid-1"
			}
			for field, value := range want {
				if line[field] != value {
					t.Errorf("%s is %v, want %s", field, line[field], value)
				}
			}
			for field, part := range c.says {
				if got := fmt.Sprint(line[field]); !strings.Contains(got, part) {
					t.Errorf("%s is %s, want %s", field, got, part)
				}
			}
			if _, has := line["reason"]; has && c.says["reason"] == "" || line["error"] != nil {
				t.Errorf("a reason too many: %v", line)
			}
			if t.Failed() {
				t.Log(line)
			}
		})
	}
}

func TestAnInvalidNetConfIsLogged(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["backend"], a.conf["logLevel"] = "ebpf", "debug"
	for verb, events := range map[string][]string{"ADD": {"add-failed"}, "CHECK": {"check-failed"}, "STATUS": {"status-failed"}, "GC": {"gc-failed"}, "DEL": {"net-conf-invalid", "del-done"}} {
		before := len(a.logged())
		_, _ = a.run(verb)
		lines := a.logged()[before:]
		for i, event := range events {
			if len(lines) != len(events) || lines[i]["event"] != event {
				t.Fatalf("%s: logged %v, want %q", verb, lines, events)
			}
		}
		if why := fmt.Sprint(lines[0]["reason"]); !strings.Contains(why, `backend: "ebpf" is none of`) {
			t.Errorf("%s: the reason is %s", verb, why)
		}
	}
}

// The log is everybody's on the node: each call adds to it, and none makes it readable, or writable, for all.
func TestTheLogIsAppendedToAndNotForEveryone(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.file("log", `{"msg":"of another pod"}`+"\n")
	a.must("ADD")
	a.must("ADD")
	if lines := a.logged(); len(lines) != 3 || lines[0]["msg"] != "of another pod" || lines[1]["verb"] != "ADD" || lines[2]["verb"] != "ADD" {
		t.Errorf("the log is %v", lines)
	}
	if err := os.Remove(a.path("log")); err != nil {
		t.Fatal(err)
	}
	add := a.command("ADD")
	add.Path, add.Args = "/bin/sh", []string{"sh", "-c", "umask 0; exec " + add.Path}
	if out, err := add.Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if info, err := os.Stat(a.path("log")); err != nil || info.Mode() != 0o640 {
		t.Errorf("got %v, %v", info, err)
	}
}
