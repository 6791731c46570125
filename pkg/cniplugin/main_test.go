package cniplugin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// binDir holds the real plugin, cnitool and the plugins ahead of it in the chain.
var binDir = nettest.Programs("../../plugin/detour", "../../plugin/detourctl", "tool")

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

const (
	meshed = `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1%s},
  spec: {containers: [{name: app}, {name: envoy, securityContext: {runAsUser: 1500}}]}}`
	meshConfig = `{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: osm-system, name: osm-mesh-config},
  spec: {traffic: {outboundPortExclusionList: [6379]}}}`
)

// meshedPod is the pod shop/web with annotations, each `name: "value"`.
func meshedPod(annotations ...string) string {
	if len(annotations) == 0 {
		return fmt.Sprintf(meshed, "")
	}
	return fmt.Sprintf(meshed, ", annotations: {openservicemesh.io/"+strings.Join(annotations, ", openservicemesh.io/")+"}")
}

// attachment is one pod's attachment, with a net conf and folders of its own.
type attachment struct {
	t    testing.TB
	ns   *nettest.Namespace
	dir  string
	conf map[string]any
	env  map[string]string
	// mounts are those that the plugin sees, nil for the test's own.
	mounts *nettest.Mounts
	// denied are system calls that fail for the plugin.
	denied []nettest.Denial
}

// newAttachment returns an attachment of pod shop/web to a namespace of its own, with manifests as the source.
func newAttachment(t testing.TB, manifests ...string) *attachment {
	t.Helper()
	a := &attachment{t: t, ns: nettest.StartNamespace(t, "pod"), dir: t.TempDir()}
	a.file("manifests.yaml", strings.Join(manifests, "\n---\n"))
	a.conf = map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "detour",
		"mesh": "osm", "manifests": a.path("manifests.yaml"), "stateDir": a.path("state"), "logFile": a.path("log"),
		"timeout":    "1m", // a busy machine is no reason to fail
		"prevResult": prevResult("10.77.0.2/24", "fd77::2/64"),
	}
	a.env = map[string]string{
		"CNI_CONTAINERID": "c1", "CNI_NETNS": a.ns.Path(), "CNI_IFNAME": "eth0", "CNI_PATH": binDir(t),
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=uid-1",
	}
	return a
}

func prevResult(addresses ...string) map[string]any {
	ips := []any{}
	for _, a := range addresses {
		ips = append(ips, map[string]any{"address": a})
	}
	return map[string]any{"cniVersion": "1.1.0", "ips": ips, "dns": map[string]any{}}
}

func (a *attachment) path(name string) string { return filepath.Join(a.dir, name) }

func (a *attachment) file(name, content string) {
	a.t.Helper()
	if err := os.WriteFile(a.path(name), []byte(content), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// command is the plugin as a runtime would start it.
func (a *attachment) command(verb string) *exec.Cmd {
	conf, err := json.Marshal(a.conf)
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(binDir(a.t), "detour"))
	cmd.Stdin = bytes.NewReader(conf)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb)
	for k, v := range a.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if a.mounts != nil {
		if err := a.mounts.Enter(cmd); err != nil {
			a.t.Fatal(err)
		}
	}
	nettest.Deny(cmd, a.denied...)
	return cmd
}

// run runs a verb and returns what the plugin printed and the CNI error, nil if it succeeded.
func (a *attachment) run(verb string) ([]byte, *types.Error) {
	a.t.Helper()
	cmd := a.command(verb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	a.t.Logf("%s: %s%s", verb, out, &stderr) // scripts/test.sh looks for credentials in it
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		a.t.Fatal(err)
	}
	if err == nil {
		return out, nil
	}
	var cniErr types.Error
	if jsonErr := json.Unmarshal(out, &cniErr); jsonErr != nil || cniErr.Msg == "" {
		a.t.Fatalf("%s failed without a CNI error on stdout: %q, stderr %q", verb, out, &stderr)
	}
	return nil, &cniErr
}

func (a *attachment) must(verb string) []byte {
	a.t.Helper()
	out, err := a.run(verb)
	if err != nil {
		a.t.Fatalf("%s: %v", verb, err)
	}
	return out
}

// fails expects a verb to fail with a code and a message that contains all of parts.
func (a *attachment) fails(verb string, code uint, parts ...string) {
	a.t.Helper()
	_, err := a.run(verb)
	if err == nil {
		a.t.Fatalf("%s succeeded, want code %d", verb, code)
	}
	if err.Code != code {
		a.t.Errorf("%s: code %d, want %d: %v", verb, err.Code, code, err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			a.t.Errorf("%s: %q does not contain %q", verb, err, p)
		}
	}
}

// rules are the family's rules in the kernel, of the host's default iptables.
func (a *attachment) rules(f rules.Family) []string {
	a.t.Helper()
	program := map[rules.Family]string{rules.IPv4: "iptables-save", rules.IPv6: "ip6tables-save"}[f]
	var list []string
	for line := range strings.Lines(a.output(program)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "-A") || strings.HasSuffix(line, " - [0:0]") {
			list = append(list, line)
		}
	}
	return list
}

// save is what iptables-save prints.
func (a *attachment) save() string { return a.output("iptables-save") }

// output runs a program in the pod's namespace and returns what it prints.
func (a *attachment) output(program string, args ...string) string {
	a.t.Helper()
	nettest.RequireProgram(a.t, program)
	var out []byte
	if err := a.ns.Do(func() (err error) { out, err = exec.Command(program, args...).Output(); return err }); err != nil {
		a.t.Fatal(err)
	}
	return string(out)
}

// shell runs a command in the pod's namespace.
func (a *attachment) shell(script string) {
	a.t.Helper()
	var out []byte
	if err := a.ns.Do(func() (err error) { out, err = exec.Command("sh", "-ec", script).CombinedOutput(); return err }); err != nil {
		a.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// logged returns the lines of the log.
func (a *attachment) logged() []map[string]any {
	a.t.Helper()
	data, err := os.ReadFile(a.path("log"))
	if err != nil && !os.IsNotExist(err) {
		a.t.Fatal(err)
	}
	var lines []map[string]any
	for line := range strings.Lines(string(data)) {
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			a.t.Fatalf("log line %q: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// records lists the attachment state that is there.
func (a *attachment) records() []string {
	a.t.Helper()
	paths, err := filepath.Glob(a.path("state/attachments/*/*"))
	if err != nil {
		a.t.Fatal(err)
	}
	for i, p := range paths {
		paths[i], _ = filepath.Rel(a.path("state/attachments"), p)
	}
	return paths
}

// untouched expects that there is neither a rule nor state.
func (a *attachment) untouched() {
	a.t.Helper()
	a.noRules()
	if got := a.records(); len(got) > 0 {
		a.t.Errorf("there is state: %q", got)
	}
}

// noRules expects that the namespace has no rules of iptables, and not detour's table.
func (a *attachment) noRules() {
	a.t.Helper()
	for _, f := range rules.Families {
		if got := a.rules(f); len(got) > 0 {
			a.t.Errorf("%s has rules: %q", f, got)
		}
	}
	a.noTable()
}
