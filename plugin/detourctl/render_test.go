package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/testcase"
)

func render(t *testing.T, args ...string) (out, warnings string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c := renderCommand()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(args)
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	err = c.ExecuteContext(t.Context())
	return stdout.String(), stderr.String(), err
}

func TestRenderPrintsWhatEveryCaseWants(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			ips := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(c.Addresses(t))), ","), "[]")
			args := []string{"--mesh", c.Mesh, "--manifests", c.Manifests(t), "--pod", "shop/web", "--pod-ips", ips, "--format"}
			both, warnings, err := render(t, append(args, "nft")...)
			var ended codeError
			switch {
			case c.Section("want.skip") != "":
				if !errors.As(err, &ended) || ended.code != exitUnknown || !strings.HasSuffix(err.Error()+"\n", "is left alone: "+c.Section("want.skip")) {
					t.Errorf("got error %v", err)
				}
			case c.Section("want.error") != "":
				if err == nil || err.Error()+"\n" != c.Section("want.error") {
					t.Errorf("got error %v", err)
				}
			default:
				if want := "# nft -f\n" + c.Section("want.nft"); err != nil || both != want {
					t.Errorf("got %v\n%swant\n%s", err, both, want)
				}
				both, _, err := render(t, append(args, "iptables")...)
				want := "# IPv4: iptables-restore --noflush\n" + c.Section("want.iptables")
				if six := c.Section("want.ip6tables"); six != "" {
					want += "# IPv6: ip6tables-restore --noflush\n" + six
				}
				if c.Section("want.iptables") == "" {
					if err == nil || !strings.Contains(err.Error(), "needs backend nftables") {
						t.Errorf("got error %v", err)
					}
				} else if err != nil || both != want {
					t.Errorf("got %v\n%swant\n%s", err, both, want)
				}
				for w := range strings.Lines(c.Section("want.warnings")) {
					if !strings.Contains(warnings, "warning: "+w) {
						t.Errorf("%q does not warn of %q", warnings, w)
					}
				}
			}
		})
	}
}

func guide(t *testing.T) []string {
	t.Helper()
	c := testcase.Find(t, "../..", "osm/guide")
	return []string{"--mesh", c.Mesh, "--manifests", c.Manifests(t), "--pod", "shop/web", "--family", "4", "--format", "iptables"}
}

func TestRenderExplainsEveryRule(t *testing.T) {
	out, _, err := render(t, append(guide(t), "--explain")...)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "-A") && !strings.HasPrefix(lines[i-1], "# ") {
			t.Errorf("nothing is said of %s", line)
		}
	}
	if want := "# ports excluded by spec.traffic.outboundPortExclusionList (6379, 7070), openservicemesh.io/outbound-port-exclusion-list (8080)\n-A PROXY_OUTPUT -p tcp -m multiport --dports 6379,7070,8080 -j RETURN"; !strings.Contains(out, want) {
		t.Errorf("got\n%s", out)
	}
}

func TestRenderAsJSON(t *testing.T) {
	out, _, err := render(t, append(guide(t), "--format", "json")...)
	if err != nil {
		t.Fatal(err)
	}
	var families []jsonFamily
	if err := json.Unmarshal([]byte(out), &families); err != nil || len(families) != 1 || len(families[0].Rules) != 16 {
		t.Fatalf("got %v, %+v", err, families)
	}
	first := jsonRule{"nat", "PROXY_REDIRECT", "-A PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 15001", "outbound connections go to the proxy's outbound listener"}
	if families[0].Rules[0] != first {
		t.Errorf("got %+v, want %+v", families[0].Rules[0], first)
	}
}

// The net conf decides as it does in ADD, whether it stands alone or in a conflist.
func TestRenderReadsTheNetConf(t *testing.T) {
	c := testcase.Find(t, "../..", "osm/guide")
	conf := filepath.Join(t.TempDir(), "conf")
	run := func(text string) (string, error) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _, err := render(t, "--conf", conf, "--manifests", c.Manifests(t), "--pod", "shop/web")
		return out, err
	}
	for text, want := range map[string]string{
		`{"cniVersion": "9.9.9", "plugins": [{"type": "detour", "mesh": "osm", "backend": "nftables", "agentSocket": "/s"}]}`: "# nft -f\n", // ADD needs a name and a known version, render neither
		`{"mesh": "osm", "backend": "iptables"}`: "# IPv4: iptables-restore --noflush\n*nat\n",
		`{"type": "detour", "mesh": "osm", "agentSocket": "/s", "kubeconfig": "/k", "proxy": {"uid": 4711}}`:                                                             "--uid-owner 4711 ",
		`{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}, {"type": "detour", "mesh": "osm", "redirectAfterProxyStart": true, "agentSocket": "/s"}]}`: "backend auto takes nftables\n# nft -f\n",
	} {
		if out, err := run(text); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: got %v\n%s", text, err, out)
		}
	}
	for text, want := range map[string]string{
		`{"mesh": "osm", "excludeNamespaces": ["shop"]}`: "namespace shop is excluded",
		`{"plugins": [{"type": "bridge"}]}`:              "plugins: 0 entries are of type detour, want one",
		`{"plugins": 1}`:                                 "plugins: ",
		`null`:                                           "it is not a JSON object",
		`{"plugins": [{"type": "detour", "mesh": "osm"}, {"type": "detour", "mesh": "istio"}]}`: "plugins: 2 entries are of type detour, want one",
		strings.Repeat(" ", maxConf) + `{"mesh": "osm"}`:                                        "is larger than 1 MiB",
		`[]`:                             "it is not a JSON object",
		`{"mesh": "osm", "exclude": []}`: "exclude: there is no such field",
		`{"plugins": [{"type": "detour", "mesh": "istio-cni"}]}`: `mesh: "istio-cni" is none of osm`,
	} {
		if _, err := run(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestRenderRefusesWhatMakesNoSense(t *testing.T) {
	for want, args := range map[string][]string{
		`--mesh: "x" is none of osm`:               {"--mesh", "x"},
		`--pod: "web" is not NAMESPACE/NAME`:       {"--pod", "web"},
		`--pod-ips: "10.0.0" is not an IP address`: {"--pod-ips", "10.0.0"},
		`--family: 5 is neither 4 nor 6`:           {"--family", "5"},
		`--format: "yaml" is none of auto`:         {"--format", "yaml"},
		`no such pod; it holds shop/web`:           {"--pod", "shop/other"},
		`/nowhere`:                                 {"--manifests", "/nowhere"},
	} {
		if _, _, err := render(t, append(guide(t), args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got error %v, want %q", args, err, want)
		}
	}
}

func TestRenderAutoSaysWhichBackendItTakes(t *testing.T) {
	for name, want := range map[string]string{"osm/guide": "# backend auto takes iptables\n# IPv4: iptables-restore", "osm/after-proxy-start": "# backend auto takes nftables\n# nft -f\n"} {
		c := testcase.Find(t, "../..", name)
		out, _, err := render(t, "--mesh", c.Mesh, "--manifests", c.Manifests(t), "--pod", "shop/web")
		if err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("%s: got %v\n%s", name, err, out)
		}
	}
}
