package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// found returns what the pattern's group matches, sorted, each once.
func found(text, pattern string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Every flag with its default, metric and log event of the webhook has a row in deploy/README.md, and every row is of one that exists.
func TestTheOperatorsPageHasAllOfTheWebhook(t *testing.T) {
	t.Parallel()
	_, page, _ := strings.Cut(read(t, "../../deploy/README.md"), "## Reference of the webhook")
	var flags []string
	command(io.Discard).Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, "--"+f.Name+"` | `"+f.DefValue) })
	slices.Sort(flags)
	if got := found(page, "(?m)^\\| `(--[a-z-]+` \\| `[^`]*)`"); !slices.Equal(got, flags) {
		t.Errorf("it has the flags %q\nwant %q", got, flags)
	}
	var code strings.Builder
	err := filepath.WalkDir("../../pkg/webhook", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			code.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range []string{"Info", "Warn", "Error"} {
		want := found(code.String(), level+`\([^\n]*"event", "([a-z-]+)"`)
		if got := found(page, "(?m)^\\| `([a-z-]+)` \\| "+strings.ToLower(level)+" \\|"); !slices.Equal(got, want) {
			t.Errorf("it has the events %q\nof level %s, want %q", got, level, want)
		}
	}
	metrics := found(code.String(), `Subsystem: "webhook", Name: "([a-z_]+)"`)
	if got := found(page, "(?m)^\\| `detour_webhook_([a-z_]+)` \\|"); !slices.Equal(got, metrics) || len(metrics) != 3 {
		t.Errorf("it has the metrics %q, want %q", got, metrics)
	}
	for _, path := range found(code.String(), `(?m)^\t\t"(/[a-z/-]+)": +\{`) {
		if !strings.Contains(page, "`"+path+"`") {
			t.Errorf("it has no path %s", path)
		}
	}
}

func put(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netconf.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	good := put(t, `{"mesh": "osm"}`)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no net conf":         {[]string{"--config=/nowhere"}, "detour-webhook: read the plugin's configuration: open /nowhere: no such file or directory\n"},
		"no such mesh":        {[]string{"--config=" + put(t, `{"mesh": "osn"}`)}, `detour-webhook: network configuration of detour: mesh: "osn" is none of osm,`},
		"another certificate": {[]string{"--config=" + good, "--certificate=mine"}, "detour-webhook: --certificate: \"mine\" is neither self nor external\n"},
		"no address":          {[]string{"--config=" + good, "--pod-ips=10.0.0.1,web"}, `detour-webhook: --pod-ips: ParseAddr("web"): unable to parse IP` + "\n"},
		"an argument":         {[]string{"run"}, `detour-webhook: unknown command "run" for "detour-webhook"` + "\n"},
		"no credential":       {[]string{"--config=" + good}, "detour-webhook: read the API server's address and credential: "},
	} {
		var stderr bytes.Buffer
		if code := run(tt.args, &stderr); code != 1 || !strings.HasPrefix(stderr.String(), tt.want) || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%s: %d %q, want %q", name, code, stderr.String(), tt.want)
		}
	}
}

// What the Deployment passes, this program takes.
func TestTheManifestsArguments(t *testing.T) {
	t.Parallel()
	document, _, _ := strings.Cut(read(t, "../../deploy/components/webhook/deployment.yaml"), "\n---")
	var d struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct{ Command, Args []string }
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(document), &d); err != nil {
		t.Fatal(err)
	}
	c := d.Spec.Template.Spec.Containers[0]
	flags := command(io.Discard).Flags()
	if err := flags.Parse(c.Args); err != nil || len(flags.Args()) > 0 || !slices.Equal(c.Command, []string{"/detour-webhook"}) || len(c.Args) < 8 {
		t.Errorf("%v: %q %q", err, c.Command, c.Args)
	}
	for _, want := range []string{"--certificate=self", "--host=detour-webhook.$(POD_NAMESPACE).svc", "--pod-ips=$(POD_IPS)"} {
		if !slices.Contains(c.Args, want) {
			t.Errorf("%q lacks %s", c.Args, want)
		}
	}
	if c.Args[5] != "--certificate=self" {
		t.Errorf("deploy/README.md says how to change argument 5, which is %s", c.Args[5])
	}
}

func TestTheNetConfsOptions(t *testing.T) {
	t.Parallel()
	o := options{config: put(t, `{"mesh": "fsm", "excludeNamespaces": ["a"], "meshConfig": {"name": "other"}}`), certificate: "external", podIPs: []string{"10.0.0.1", "fd00::1"}}
	conf, err := o.webhook(nil)
	if err != nil || conf.Dialect.Name != "fsm" || !slices.Equal(conf.ExcludeNamespaces, []string{"a"}) || conf.Dialect.Config.Name != "other" || !conf.Certificate.External || len(conf.Addresses) != 2 {
		t.Errorf("%v %+v", err, conf)
	}
}
