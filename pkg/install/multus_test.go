package install

import (
	"strings"
	"testing"
)

const (
	multusShim   = `{"cniVersion": "0.3.1", "name": "multus-cni-network", "clusterNetwork": "/host/etc/cni/net.d/10-x.conflist", "type": "multus-shim"}`
	multusCopies = `{"cniVersion": "1.0.0", "name": "multus-cni-network", "plugins": [{"type": "multus", "delegates": [` + bridge + `]}]}`
)

// Whatever Multus and the real network's installer do to their files, a pod that the runtime starts goes through detour once.
func TestMultusAndTheRealNetworkRewriteTheirFiles(t *testing.T) {
	stale := strings.Replace(bridge, "]", `, {"type": "detour", "mesh": "istio"}]`, 1)
	copies := func(list string) string { return strings.Replace(multusCopies, bridge, list, 1) }
	type files = map[string]string
	ofConf := strings.Replace(multusShim, "10-x.conflist", "10-x.conf", 1)
	ofMade := strings.Replace(multusShim, "10-x.conflist", "10-x-made-by-detour.conflist", 1)
	for _, c := range []struct {
		name           string
		before, change files  // what is written; a file that is empty is removed
		with           string // the file that has the entry in the end
	}{
		{"Multus comes", files{"10-x.conflist": bridge}, files{"00-multus.conf": multusShim}, "10-x.conflist"},
		{"Multus stops", files{"00-multus.conf": multusShim, "10-x.conflist": bridge}, files{"00-multus.conf": ""}, "10-x.conflist"},
		{"Multus starts again", files{"00-multus.conf": multusShim, "10-x.conflist": bridge}, files{"00-multus.conf": multusShim}, "10-x.conflist"},
		{"the real network starts again", files{"00-multus.conf": multusShim, "10-x.conflist": bridge}, files{"10-x.conflist": bridge}, "10-x.conflist"},
		{"it copies a list without the entry", files{"00-multus.conflist": multusCopies}, files{"00-multus.conflist": multusCopies}, "00-multus.conflist"},
		{"it copies a list with an older entry", files{"00-multus.conflist": multusCopies}, files{"00-multus.conflist": copies(stale)}, "00-multus.conflist"},
		{"it copies a single plugin's configuration", files{"00-multus.conflist": copies(single)}, nil, "00-multus.conflist"},
		{"it names a list that was made", files{"10-x.conf": single}, files{"00-multus.conf": ofMade}, "10-x-made-by-detour.conflist"},
		{"it names a single plugin's configuration", files{"00-multus.conf": ofConf, "10-x.conf": single}, nil, "00-multus-made-by-detour.conflist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.before)
			w.reconcile()
			for name, text := range c.change {
				if text == "" {
					w.remove(name)
				} else {
					put(t, w.path(name), text)
				}
			}
			r := w.reconcile()
			if r.Conflist != w.path(c.with) {
				t.Errorf("the list is %s, want %s", r.Conflist, c.with)
			}
			entry := string(w.installer().entry.text)
			all := w.files()
			all[c.with] += "" // it has to be there
			for name, text := range all {
				want := 0
				if name == c.with {
					want = 1
				}
				if got := strings.Count(compact(text), entry); got != want || strings.Contains(text, "istio") {
					t.Errorf("%s has the entry %d times, want %d:\n%s", name, got, want, text)
				}
			}
			w.uninstall()
			for name, text := range w.files() {
				if strings.Contains(compact(text), `"type":"detour"`) {
					t.Errorf("after the uninstallation %s is %s", name, text)
				}
			}
		})
	}
}

// compact takes the blanks out of JSON, which has none in its strings.
func compact(text string) string { return strings.Join(strings.Fields(text), "") }

// A real network that is not there may come back at any moment: until then nothing is changed.
func TestMultusNamesAFileThatIsNotThere(t *testing.T) {
	w := newWorld(t, map[string]string{"00-multus.conf": multusShim})
	_, err := w.installer().Reconcile()
	if err == nil {
		t.Fatal("it is installed")
	}
	mustContain(t, err.Error(), "Multus has the cluster network /host/etc/cni/net.d/10-x.conflist in "+w.path("00-multus.conf"), "no such file")
	w.wantFiles(map[string]string{"00-multus.conf": multusShim})
}
