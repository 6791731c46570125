package upgrade

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

// version is a folder of programs.
type version struct{ name, bin string }

// pod is a pod's network namespace and attachment, with a state folder of its own.
type pod struct {
	t    *testing.T
	ns   *nettest.Namespace
	dir  string
	conf map[string]any
	env  map[string]string
}

// newPod returns the case's pod, of which manifests tell.
func newPod(t *testing.T, c testcase.Case) *pod {
	t.Helper()
	request, object, _ := caseObjects(t, c)
	uid, _ := object["metadata"].(map[string]any)["uid"].(string)
	var ips []any
	for _, a := range c.Addresses(t) {
		ips = append(ips, map[string]any{"address": fmt.Sprintf("%s/%d", a, a.BitLen())})
	}
	p := &pod{t: t, ns: nettest.StartNamespace(t, "upgraded"), dir: t.TempDir()}
	p.conf = map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "detour", "mesh": c.Mesh, "manifests": c.Manifests(t),
		"stateDir": filepath.Join(p.dir, "state"), "logFile": filepath.Join(p.dir, "log"), "timeout": "1m",
		"prevResult": map[string]any{"cniVersion": "1.1.0", "ips": ips, "dns": map[string]any{}},
	}
	p.env = map[string]string{
		"CNI_CONTAINERID": "c1", "CNI_NETNS": p.ns.Path(), "CNI_IFNAME": "eth0",
		"CNI_ARGS": fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", request.Namespace, request.Name, uid),
	}
	return p
}

// another is the same pod's attachment to another network.
func (p *pod) another(ifName string) *pod {
	other := *p
	other.conf, other.env = maps.Clone(p.conf), maps.Clone(p.env)
	other.conf["name"], other.env["CNI_IFNAME"] = "of-"+ifName, ifName
	return &other
}

// try runs a verb of a version's plugin.
func (p *pod) try(v version, verb string) error {
	p.t.Helper()
	conf, err := json.Marshal(p.conf)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(v.bin, "detour"))
	cmd.Stdin = bytes.NewReader(conf)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_PATH="+v.bin)
	for k, v := range p.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s by %s: %w: %s", verb, v.name, err, out)
	}
	return nil
}

func (p *pod) run(v version, verb string) {
	p.t.Helper()
	if err := p.try(v, verb); err != nil {
		p.t.Fatal(err)
	}
}

// holdsScript prints all that a version may program. Handles stay only if nothing is programmed again.
const holdsScript = `
nft --stateless --handle list ruleset
for f in iptables ip6tables; do $f-save | grep -e ^- -e ^\\* || :; done
for f in -4 -6; do
	ip $f rule show
	ip $f route show table 133 2>/dev/null || :
	ip -o $f addr show dev lo | sed 's/ valid_lft.*//'
done`

// holds is what the pod's namespace has.
func (p *pod) holds() string {
	p.t.Helper()
	for _, program := range []string{"nft", "iptables-save", "ip"} {
		nettest.RequireProgram(p.t, program)
	}
	var out []byte
	if err := p.ns.Do(func() (err error) { out, err = exec.Command("sh", "-ec", holdsScript).Output(); return err }); err != nil {
		p.t.Fatal(err)
	}
	return string(out)
}

var handle = regexp.MustCompile(` # handle \d+`)

// rules are what the namespace has, whenever it was programmed.
func (p *pod) rules() string {
	p.t.Helper()
	return handle.ReplaceAllString(p.holds(), "")
}

// same wants that the namespace has exactly this, down to the handles.
func (p *pod) same(when, want string) {
	p.t.Helper()
	if got := p.holds(); got != want {
		p.t.Fatalf("%s the namespace has\n%s\nand had\n%s", when, got, want)
	}
}

// nothing wants a namespace without rules, and no state.
func (p *pod) nothing() {
	p.t.Helper()
	got := p.holds()
	for _, part := range []string{"table inet detour", "\n-A", "\n-N", "fwmark", "::6/128"} {
		if strings.Contains(got, part) {
			p.t.Errorf("the namespace has %q:\n%s", part, got)
		}
	}
	var files []string
	err := filepath.WalkDir(p.conf["stateDir"].(string), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil || files != nil {
		p.t.Errorf("the state folder has %q, %v", files, err)
	}
}

// logged returns the newest line about an ADD.
func (p *pod) logged() (add struct{ Outcome, Fallback, Reason string }) {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		p.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		if err := json.Unmarshal([]byte(line), &add); err == nil && add.Outcome != "" {
			return add
		}
	}
	p.t.Fatalf("no ADD in the log: %s", text)
	return add
}

// caseObjects are what an API server has of the case: the pod and the mesh's configuration, if there is one.
func caseObjects(t *testing.T, c testcase.Case) (request kube.Request, pod, config map[string]any) {
	t.Helper()
	request, got := c.Objects(t)
	if err := json.Unmarshal(got.Pod, &pod); err != nil {
		t.Fatal(err)
	}
	if got.Config != nil {
		if err := json.Unmarshal(got.Config, &config); err != nil {
			t.Fatal(err)
		}
	}
	return request, pod, config
}
