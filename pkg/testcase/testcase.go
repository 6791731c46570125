// Package testcase is for tests only: it reads the scenarios of testdata/cases, one txtar file each, in a folder named
// after the mesh. The text above the first section says what the scenario is about; the sections are
//
//	pod.yaml         the pod
//	meshconfig.yaml  the mesh's configuration, if there is one
//	addresses        the pod's addresses, one a line, in the order of prevResult; Addresses has the default
//	want.iptables    the IPv4 rules, as input for iptables-restore
//	want.ip6tables   the IPv6 rules, if that family is programmed
//	want.nft         the rules of the families that are programmed, as input for nft -f
//	want.lo          the addresses that lo gets, one a line
//	want.skip        why the pod is left alone
//	want.error       why the pod is refused
//	want.warnings    the warnings, one a line
//	packets          connections and where they end, in nettest's language
//
// A scenario has want.nft, and want.iptables too unless iptables can't do it, or want.skip, or want.error.
package testcase

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
)

var update = flag.Bool("update", false, "rewrite the want sections of testdata with what comes out now")

// Case is one scenario.
type Case struct {
	Name    string // MESH/FILE without the ending
	Mesh    string
	path    string
	archive *txtar.Archive
	wants   []string // the sections that -update writes, in their order
}

// Load reads all scenarios; root is the path to the repository's top folder.
func Load(t testing.TB, root string) []Case {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "testdata/cases/*/*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios in %s/testdata/cases: %v", root, err)
	}
	var cases []Case
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatalf("read scenario: %v", err)
		}
		folder := filepath.Base(filepath.Dir(path))
		name := folder + "/" + strings.TrimSuffix(filepath.Base(path), ".txtar")
		c := Case{Name: name, Mesh: folder, path: path, archive: archive, wants: wants}
		if err := c.check(); err != nil {
			t.Fatalf("scenario %s: %v", name, err)
		}
		cases = append(cases, c)
	}
	return cases
}

// InKernel runs f, in parallel, for each scenario that has the section, and so a policy. It skips the test where there are no
// network namespaces.
func InKernel(t *testing.T, root, section string, f func(*testing.T, Case, decision.Decision)) {
	t.Helper()
	nettest.RequireNetns(t)
	for _, c := range Load(t, root) {
		if c.Section(section) == "" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			decided, err := c.Decide(t)
			if err != nil {
				t.Fatal(err)
			}
			f(t, c, decided)
		})
	}
}

// wants are the sections that -update writes, sections all that a scenario may have, in their order.
var (
	wants    = []string{"want.skip", "want.error", "want.warnings", "want.iptables", "want.ip6tables", "want.nft", "want.lo"}
	sections = slices.Concat([]string{"pod.yaml", "meshconfig.yaml", "addresses"}, wants, []string{"packets"})
)

// check refuses a scenario in which something would never be looked at.
func (c Case) check() error {
	for _, f := range c.archive.Files {
		if !slices.Contains(sections, f.Name) {
			return fmt.Errorf("section %q is none of %q", f.Name, sections)
		}
	}
	if c.Section("pod.yaml") == "" {
		return errors.New("it has no section pod.yaml")
	}
	if c.Section("packets") != "" && c.Section("want.skip")+c.Section("want.error") != "" {
		return errors.New("it has packets, but want.skip or want.error says that nothing is programmed: nobody would send them")
	}
	return nil
}

// Find returns the scenario called name, MESH/FILE.
func Find(t testing.TB, root, name string) Case {
	t.Helper()
	for _, c := range Load(t, root) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no scenario %s", name)
	return Case{}
}

// Section returns a section's text, "" if there is none.
func (c Case) Section(name string) string {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

// Manifests writes the pod and the mesh's configuration into a new folder and returns its path.
func (c Case) Manifests(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"pod.yaml", "meshconfig.yaml"} {
		text := c.Section(name)
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Pod returns the scenario's pod.
func (c Case) Pod(t testing.TB) (kube.Request, *kube.Manifests) {
	t.Helper()
	manifests, err := kube.NewManifests(c.Manifests(t))
	if err != nil {
		t.Fatal(err)
	}
	dialect, ok := mesh.Find(c.Mesh)
	if !ok {
		t.Fatalf("folder %s is not named for a mesh", c.Mesh)
	}
	namespace, name, _ := strings.Cut(manifests.Pods()[0], "/")
	return kube.NewRequest(dialect, pod.ID{Namespace: namespace, Name: name}), manifests
}

// Addresses returns the pod's. By default they are nettest's for a pod, of both families; with istio only the IPv6 address,
// because istio then programs both families.
func (c Case) Addresses(t testing.TB) []netip.Addr {
	t.Helper()
	if c.Section("addresses") == "" {
		both := []netip.Addr{nettest.PodIPv4, nettest.PodIPv6}
		if c.Mesh == "istio" {
			return both[1:]
		}
		return both
	}
	var out []netip.Addr
	for line := range strings.Lines(c.Section("addresses")) {
		a, err := netip.ParseAddr(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("%s: addresses: %v", c.Name, err)
		}
		out = append(out, a)
	}
	return out
}

// Objects returns the scenario's pod and configuration as the API server would serve them.
func (c Case) Objects(t testing.TB) (kube.Request, kube.Objects) {
	t.Helper()
	request, manifests := c.Pod(t)
	objects, err := manifests.Lookup(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	return request, objects
}

// Decide runs the scenario up to the decision.
func (c Case) Decide(t testing.TB) (decision.Decision, error) {
	t.Helper()
	request, objects := c.Objects(t)
	dialect, _ := mesh.Find(c.Mesh)
	return decision.Options{Dialect: dialect}.Decide(decision.Input{ID: request.ID, Pod: objects.Pod, Config: objects.Config, Addresses: c.Addresses(t)})
}

// Want compares sections with what came out and reports each that differs. With -update it writes them instead; an
// empty text is no section.
func (c Case) Want(t *testing.T, got map[string]string) {
	t.Helper()
	if *update {
		c.rewrite(t, got)
		return
	}
	for name, text := range got {
		if want := c.Section(name); want != text {
			t.Errorf("%s differs (run with -update to accept it)\n--- want\n%s--- got\n%s", name, want, text)
		}
	}
}

func (c Case) rewrite(t *testing.T, got map[string]string) {
	t.Helper()
	var files []txtar.File
	for _, f := range c.archive.Files {
		if !strings.HasPrefix(f.Name, "want.") && f.Name != "packets" {
			files = append(files, f)
		}
	}
	for _, name := range c.wants {
		text, ok := got[name]
		if !ok { // another test's
			text = c.Section(name)
		}
		if text != "" {
			files = append(files, txtar.File{Name: name, Data: []byte(text)})
		}
	}
	if packets := c.Section("packets"); packets != "" {
		files = append(files, txtar.File{Name: "packets", Data: []byte(packets)})
	}
	if err := os.WriteFile(c.path, txtar.Format(&txtar.Archive{Comment: c.archive.Comment, Files: files}), 0o644); err != nil {
		t.Fatal(err)
	}
}

// CheckPackets sends the scenario's packets through a world whose pod has the policy's rules and its proxy, and reports each
// packet that does not end where it should.
func (c Case) CheckPackets(t testing.TB, w *nettest.World, policy redirect.Policy) {
	t.Helper()
	packets, err := nettest.ParsePackets(c.Section("packets"))
	if err != nil {
		t.Fatal(err)
	}
	proxy := policy.Sidecar()
	w.ProxyUID, w.ProxyGID = proxy.UID, cmp.Or(proxy.GID, proxy.UID)
	nettest.CheckPackets(t, w, packets, proxy.Listeners()...)
}
