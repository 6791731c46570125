package install

import (
	"os"
	"strings"
	"testing"
)

func TestUninstallAfterOthersHaveChangedThings(t *testing.T) {
	const third = `, {"type": "istio-cni"}]`
	edit := func(text, old, by string) string { return strings.Replace(text, old, by, 1) }
	for _, c := range []struct {
		name   string
		before map[string]string
		change func(w *world)
		after  map[string]string
	}{
		{"nothing installed", map[string]string{"10-x.conflist": bridge}, func(w *world) { w.uninstall() },
			map[string]string{"10-x.conflist": bridge}},
		{"another plugin behind ours", map[string]string{"10-x.conflist": bridge},
			func(w *world) { put(w.tb, w.path("10-x.conflist"), edit(w.files()["10-x.conflist"], "]", third)) },
			map[string]string{"10-x.conflist": edit(bridge, "]", third)}},
		{"renamed", map[string]string{"10-x.conflist": bridge},
			func(w *world) { w.rename("10-x.conflist", "05-y.conflist") }, map[string]string{"05-y.conflist": bridge}},
		{"set aside by another network", map[string]string{"10-x.conflist": bridge},
			func(w *world) {
				w.rename("10-x.conflist", "10-x.conflist.cilium_bak")
				put(w.tb, w.path("05-y.conflist"), bridge)
				w.reconcile()
			}, map[string]string{"10-x.conflist.cilium_bak": bridge, "05-y.conflist": bridge}},
		{"written anew without ours", map[string]string{"10-x.conflist": bridge},
			func(w *world) { put(w.tb, w.path("10-x.conflist"), bridge) }, map[string]string{"10-x.conflist": bridge}},
		{"no network any more", map[string]string{"10-x.conflist": bridge},
			func(w *world) { w.remove("10-x.conflist") }, map[string]string{}},
		{"files that are no lists", map[string]string{"10-x.conflist": bridge},
			func(w *world) { put(w.tb, w.path("x.conflist"), `{"plugins": [{"type": "detour"}`) },
			map[string]string{"10-x.conflist": bridge, "x.conflist": `{"plugins": [{"type": "detour"}`}},
		{"left by a killed run", map[string]string{"10-x.conflist": bridge},
			func(w *world) { put(w.tb, w.path(".detour-1.tmp"), "x") }, map[string]string{"10-x.conflist": bridge}},
		{"the .conf is back", map[string]string{"10-x.conf": single},
			func(w *world) { put(w.tb, w.path("10-x.conf"), edit(single, "bridge", "ptp")) },
			map[string]string{"10-x.conf": edit(single, "bridge", "ptp")}},
		{"somebody else's list says the same as the one made of a .conf", map[string]string{"10-x.conf": single,
			"10-x.conflist": `{"name": "net", "cniVersion": "1.0.0", "plugins": [` + single + `]}`}, func(*world) {},
			map[string]string{"10-x.conf": single, "10-x.conflist": `{"name": "net", "cniVersion": "1.0.0", "plugins": [` + single + `]}`}},
		{"the list made of a .conf has a third plugin", map[string]string{"10-x.conf": single},
			func(w *world) {
				put(w.tb, w.path("10-x-made-by-detour.conflist"), `{"name": "net", "cniVersion": "1.0.0", "plugins": [`+single+`, {"type": "detour"}`+third+`}`)
			},
			map[string]string{"10-x-made-by-detour.conflist": `{"name": "net", "cniVersion": "1.0.0", "plugins": [` + single + third + `}`, "10-x.conf": single}},
		{"the list made of a .conf has gone", map[string]string{"10-x.conf": single},
			func(w *world) { w.remove("10-x-made-by-detour.conflist") }, map[string]string{"10-x.conf": single}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.before)
			w.reconcile()
			c.change(w)
			for range 2 {
				w.uninstall()
				diff(t, contents(t, w.ConfDir), c.after)
				diff(t, contents(t, w.BinDir), nil)
			}
		})
	}
}

// The binary stays for as long as a list needs it.
func TestUninstallStopsIfTheEntryStays(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	w.reconcile()
	put(t, w.path("20-y.conflist"), `{"name": "y", "plugins": [{"type": "detour"}]}`)
	_, err := w.installer().Uninstall()
	if err == nil {
		t.Fatal("it works")
	}
	mustContain(t, err.Error(), "20-y.conflist", "no plugin but detour")
	if len(contents(t, w.BinDir)) != 1 || contents(t, w.ConfDir)[TokenName] == "" {
		t.Error("the binary or the token has gone")
	}
}

func TestANamespaceIsFoundWithoutTheHostsLinks(t *testing.T) {
	for path, want := range map[string]string{
		"/var/run/netns/cni-1": "/run/netns/cni-1", "/run/netns/cni-1": "/run/netns/cni-1", "/proc/7/ns/net": "/proc/7/ns/net", "": "",
	} {
		if got := withoutLink(path); got != want {
			t.Errorf("%q is %q here, want %q", path, got, want)
		}
	}
	if namespaceStands("") || namespaceStands(t.TempDir()+"/gone") || !namespaceStands("/proc/self/ns/net") {
		t.Error("a namespace stands that has gone, or the other way round")
	}
}

// If nobody can tell which pods need the binary, it stays.
func TestUninstallStopsIfNobodyKnowsWhatTheRuntimeKeeps(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	w.reconcile()
	put(t, w.CacheDir, "no folder")
	_, err := w.installer().Uninstall()
	if err == nil {
		t.Fatal("it works")
	}
	mustContain(t, err.Error(), "uninstall binary: list the runtime's attachments", w.CacheDir)
	w.wantFiles(map[string]string{"10-x.conflist": bridge})
	if len(contents(t, w.BinDir)) != 1 {
		t.Error("the binary has gone")
	}
}

func (w *world) rename(from, to string) {
	w.tb.Helper()
	if err := os.Rename(w.path(from), w.path(to)); err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.tb.Helper()
	if err := os.Remove(w.path(name)); err != nil {
		w.tb.Fatal(err)
	}
}
