package cniplugin_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/faults"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/snapshot/nftables"
	"github.com/detour-cni/detour/pkg/snapshot/routing"
	"github.com/detour-cni/detour/pkg/snapshot/xtables"
)

// host is what a node has: a backend, and where the plugin gets its objects.
type host struct{ programs, source string }

func (h host) String() string { return h.programs + ", " + h.source }

// struck is an attachment of a pod with an outside, whose plugin is killed or whose calls fail.
type struck struct {
	*attachment
	world *nettest.World
	// What the namespace holds before ADD, after it, and after one that decides otherwise.
	bare, full, other held
	// The record that ADD leaves, and that the other leaves.
	fullRecord, otherRecord string
}

func newStruck(t *testing.T, h host) *struck {
	t.Helper()
	a := newAttachment(t)
	switch h.source {
	case "agent":
		told := a.withAgent(meshedPod())
		go func() {
			for range told {
			}
		}()
	case "API server":
		apiServer(t, a, nil)
		a.conf["timeout"] = "1m"
	}
	a.conf["backend"] = "iptables"
	switch h.programs {
	case "nftables":
		a.conf["backend"] = "nftables"
	case "iptables-legacy":
		a.env["PATH"] = legacyPath(t)
	case "iptables-nft": // a short PATH, as each folder costs calls
		nettest.RequireProgram(t, "iptables-nft-restore")
		path, err := exec.LookPath("iptables-nft-restore")
		if err != nil {
			t.Fatal(err)
		}
		a.env["PATH"] = filepath.Dir(path)
	}
	s := &struck{attachment: a, world: nettest.StartWorld(t)}
	a.ns, a.env["CNI_NETNS"] = s.world.Pod, s.world.Pod.Path()
	s.serve()
	s.bare = s.look()
	s.redecide()
	s.must("ADD")
	s.other, s.otherRecord = s.look(), s.recorded()
	s.decideAsFirst()
	s.must("ADD")
	s.must("DEL")
	s.must("ADD")
	s.full, s.fullRecord = s.look(), s.recorded()
	s.must("DEL")
	if maps.Equal(s.full, s.other) || maps.Equal(s.full, s.bare) {
		t.Fatalf("the decisions leave the same: %q, %q, %q", s.bare, s.full, s.other)
	}
	if got := s.look(); !maps.Equal(got, s.bare) {
		t.Fatalf("without a fault, DEL leaves %q", got)
	}
	return s
}

// redecide has the next ADDs decide otherwise, by the net conf.
func (s *struck) redecide() {
	s.conf["proxy"] = map[string]any{"ports": map[string]any{"admin": 15009}}
}

func (s *struck) decideAsFirst() { delete(s.conf, "proxy") }

// held is what a namespace holds, by what is programmed at once: a table of a family, nftables' one table, the routing.
type held map[string]string

// look reads the namespace without a program.
func (a *attachment) look() held {
	a.t.Helper()
	h := held{}
	err := a.ns.Do(func() error {
		names := map[string][]string{}
		for _, f := range rules.Families {
			saved, err := xtables.Save(f)
			if err != nil {
				return err
			}
			h.save(fmt.Sprint("iptables-nft ", f), saved.Nft)
			h.save(fmt.Sprint("iptables-legacy ", f), saved.Legacy)
			names[map[rules.Family]string{rules.IPv4: "ip", rules.IPv6: "ip6"}[f]] = saved.Names
		}
		own, err := nftables.Read(func(family, table string) bool { return slices.Contains(names[family], table) })
		if err != nil {
			return err
		}
		if strings.Contains(string(own), `"detour"`) {
			h["nftables"] = handles.ReplaceAllString(string(own), "")
		}
		r, err := routing.Read()
		h["routing"] = string(r.Rules)
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return h
}

// handles are the kernel's numbers, which are new each time.
var handles = regexp.MustCompile(`"handle":\s*\d+,?`)

// save adds the rules of what iptables-save prints.
func (h held) save(key, text string) {
	table := ""
	for line := range strings.Lines(text) {
		switch {
		case line[0] == '*':
			table = " " + strings.TrimSpace(line[1:])
		case strings.Contains(line, "-A ") || strings.Contains(line, " - ["):
			h[key+table] += counters.ReplaceAllString(line, "")
		}
	}
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// whole names a part that is as in none of the states; "" if there is none.
func (h held) whole(states ...held) string {
	keys := slices.Collect(maps.Keys(h))
	for _, s := range states {
		keys = append(keys, slices.Collect(maps.Keys(s))...)
	}
	for _, k := range keys {
		if !slices.ContainsFunc(states, func(s held) bool { return s[k] == h[k] }) {
			return fmt.Sprintf("%s is half done: %s", k, h[k])
		}
	}
	return ""
}

// recorded is the record without what differs from ADD to ADD.
func (s *struck) recorded() string {
	data, err := os.ReadFile(s.path(s.recordName()))
	if err != nil {
		return err.Error()
	}
	var r map[string]any
	if err := json.Unmarshal(data, &r); err != nil {
		return err.Error()
	}
	for _, key := range []string{"time", "containerID"} {
		delete(r, key)
	}
	data, _ = json.Marshal(r)
	return string(data)
}

// nothingLeft says what is left after the last DEL; "" if it is nothing.
func (s *struck) nothingLeft() string {
	if got := s.look(); !maps.Equal(got, s.bare) {
		return fmt.Sprintf("the namespace has %q", got)
	}
	files, _ := filepath.Glob(s.path("state/*/*"))
	more, _ := filepath.Glob(s.path("state/attachments/*/*"))
	files = slices.DeleteFunc(append(files, more...), func(f string) bool { return filepath.Base(filepath.Dir(f)) == "attachments" })
	if len(files) > 0 {
		return fmt.Sprintf("files are left: %q", files)
	}
	return ""
}

// faulted runs a verb with a fault. It leaves no process.
func (s *struck) faulted(verb string, f faults.Fault) (faults.Result, string, string) {
	s.t.Helper()
	cmd := s.command(verb)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	r, err := faults.Run(cmd, f)
	if err != nil {
		s.t.Fatal(err)
	}
	return r, stdout.String(), stderr.String()
}
