//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/scripts/leaks/secret"
)

// privilege is something that a manifest gives a container.
type privilege struct {
	name string
	take func(*container) // takes it away, or makes it stricter
	says []string         // in the log or at /readyz, one of them
}

// mounts are a container's mounts: each is missing, and each that is writable is read-only, with what is said then.
func mounts(said map[string][2]string) (all []privilege) {
	for name, says := range said {
		all = append(all, privilege{"no " + name, func(c *container) {
			c.pod["volumes"] = slices.DeleteFunc(c.pod["volumes"].([]any), func(v any) bool { return v.(map[string]any)["name"] == name })
		}, says[:1]})
		if says[1] != "" {
			all = append(all, privilege{name + " read-only", func(c *container) { c.mount(name)["readOnly"] = true }, says[1:]})
		}
	}
	return all
}

// mount is the container's mount of a volume.
func (c *container) mount(volume string) map[string]any {
	for _, m := range c.spec["volumeMounts"].([]any) {
		if m.(map[string]any)["name"] == volume {
			return m.(map[string]any)
		}
	}
	c.t.Fatalf("there is no mount of %s", volume)
	return nil
}

// wantMounts wants that the table has all mounts, with whether they are writable, and the user of a container.
func (c *container) wantMounts(said map[string][2]string) {
	c.t.Helper()
	for _, m := range c.spec["volumeMounts"].([]any) {
		mount := m.(map[string]any)
		says, ok := said[mount["name"].(string)]
		if !ok || (says[1] == "") != (mount["readOnly"] == true) {
			c.t.Errorf("the table does not have the mount %v", mount)
		}
	}
}

var agentsMounts = map[string][2]string{
	"cni-bin":    {"/host/opt/cni/bin: no such file or directory", "/host/opt/cni/bin/.detour-"},
	"cni-conf":   {"/host/etc/cni/net.d: no such file or directory", "/host/etc/cni/net.d/.detour-"},
	"run":        {"make socket: mkdir /run", "make socket: "},
	"config":     {"/etc/detour/netconf.json: no such file or directory", ""},
	"credential": {"serviceaccount/token: no such file or directory", ""},
}

func TestTheAgentNeedsAllThatItsContainerHas(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	home := install(t, "overlays/osm")
	token := agentToken(t, home)
	objects := func(t *testing.T) []object { return render(t, "../../deploy/overlays/osm") }
	rows := append(mounts(agentsMounts),
		privilege{"all", func(*container) {}, nil},
		privilege{"another user", func(c *container) { c.pod["securityContext"].(map[string]any)["runAsUser"] = 65532 }, []string{"/host/etc/cni/net.d: permission denied", "make socket: "}},
		privilege{"no network of the host", func(c *container) { c.netns = nettest.StartWorld(c.t).Pod.Path() }, []string{"network is unreachable", "connection refused"}},
		privilege{"no name of the node", func(c *container) { delete(c.env, "NODE_NAME") }, []string{`"" is not a node's name`}},
	)
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newContainer(t, find(t, objects(t), "DaemonSet", "detour-agent"), "containers", token)
			c.wantMounts(agentsMounts)
			if given := c.spec["securityContext"].(map[string]any)["capabilities"].(map[string]any)["add"]; given != nil {
				t.Errorf("it has the capabilities %v", given)
			}
			c.asAgent(home)
			tt.take(c)
			c.start()
			c.wantSaid(tt.says)
			if tt.says == nil {
				c.wantAgentsFiles()
			}
		})
	}
}

// asAgent gives the container what the kubelet gives it.
func (c *container) asAgent(node string) {
	metrics := freeAddress(c.t)
	c.env = map[string]string{"NODE_NAME": node, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": fmt.Sprint(kubernetes.port), "METRICS": metrics}
	c.args = []string{"--metrics=" + metrics}
}

// ready is what /readyz answers.
func (c *container) ready() string {
	resp, err := http.Get("http://" + c.env["METRICS"] + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body := make([]byte, 4096)
	n, _ := resp.Body.Read(body)
	return string(body[:n])
}

// wantSaid waits until one of the texts is said, or until all is well if there are none.
func (c *container) wantSaid(texts []string) {
	c.t.Helper()
	said := ""
	for deadline := time.Now().Add(4 * settleTime); time.Now().Before(deadline); time.Sleep(pollTime) {
		said = c.output.String() + c.ready()
		if texts == nil && strings.HasPrefix(c.ready(), "ok") {
			if strings.Contains(said, "denied") || strings.Contains(said, "not permitted") {
				c.t.Errorf("something fails: %s", said)
			}
			return
		}
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(said, text) }) {
			return
		}
	}
	c.t.Errorf("want %q; it says %s", texts, said)
}

// wantAgentsFiles wants the modes of all that the agent writes.
func (c *container) wantAgentsFiles() {
	c.t.Helper()
	want := []string{
		"-rw------- /etc/cni/net.d/10-net.conflist", // as the network's owner made it
		"-rw------- /etc/cni/net.d/detour-kubeconfig",
		"-rw------- /etc/cni/net.d/detour-token",
		"-rwxr-xr-x /opt/cni/bin/detour",
		"drwx------ /run/detour",
		"Srw------- /run/detour/agent.sock",
	}
	if got := c.files(); !slices.Equal(got, want) {
		c.t.Errorf("the files are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(c.read("host/etc/cni/net.d/10-net.conflist"), `"detour"`) {
		c.t.Error("the entry is missing")
	}
	for _, file := range []string{"10-net.conflist", "detour-kubeconfig"} {
		if found := secret.Find(c.read("host/etc/cni/net.d/" + file)); found != "" {
			c.t.Errorf("%s has a credential", file)
		}
	}
}

func TestTheAgentThatRepairsInPlaceNeedsAllThatItsContainerHas(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	without := func(name string) func(*container) {
		return func(c *container) {
			given := c.spec["securityContext"].(map[string]any)["capabilities"].(map[string]any)
			given["add"] = slices.DeleteFunc(given["add"].([]any), func(v any) bool { return v == name })
		}
	}
	rows := []privilege{
		{"all", func(*container) {}, []string{`"event":"pod-repaired"`}},
		{"no NET_ADMIN", without("NET_ADMIN"), []string{"CAP_NET_ADMIN is missing"}},
		{"no SYS_ADMIN", without("SYS_ADMIN"), []string{"operation not permitted: run as root, or with CAP_SYS_ADMIN"}},
		{"no netns", func(c *container) {
			c.pod["volumes"] = slices.DeleteFunc(c.pod["volumes"].([]any), func(v any) bool { return v.(map[string]any)["name"] == "netns" })
		}, []string{"list network namespaces: open /run/netns"}},
		{"no propagation", func(c *container) { delete(c.mount("netns"), "mountPropagation") }, []string{"no network namespace in /run/netns has"}},
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, customize(t, []string{"overlays/osm"}, []string{"components/repair-in-place"}, ""))
			s := newAgentScene(t)
			token, err := kubernetes.token(s.pods, "default")
			if err != nil {
				t.Fatal(err)
			}
			c := newContainer(t, find(t, objects, "DaemonSet", "detour-agent"), "containers", token)
			known := map[string][2]string{"netns": {}} // read-only, as are those of which nothing is said then
			maps.Copy(known, agentsMounts)
			c.wantMounts(known)
			if got := fmt.Sprint(c.spec["securityContext"].(map[string]any)["capabilities"].(map[string]any)["add"]); got != "[NET_ADMIN SYS_ADMIN]" {
				t.Errorf("the table does not have the capabilities %s", got)
			}
			c.asAgent(s.node)
			tt.take(c)
			// The runtime mounts the namespaces into a folder of which each container may have its own copy.
			folder := c.path("host/run/netns")
			mount(t, "-t", "tmpfs", "detour-test", folder)
			mustRun(t, "mount", "--make-shared", folder)
			world := nettest.StartWorld(t)
			c.start()
			c.wantStarted()
			mustRun(t, "touch", folder+"/pod")
			mount(t, "--bind", world.Pod.Path(), folder+"/pod")
			s.createPod("web", s.node)
			c.wantSaid(tt.says)
		})
	}
}

// wantStarted waits until the agent answers.
func (c *container) wantStarted() {
	c.t.Helper()
	for deadline := time.Now().Add(settleTime); strings.Contains(c.ready(), "connect"); time.Sleep(pollTime) {
		if time.Now().After(deadline) {
			c.t.Fatalf("it does not start: %s", c.output.String())
		}
	}
}

// mount mounts until the test ends.
func mount(t *testing.T, args ...string) {
	t.Helper()
	mustRun(t, append([]string{"mount"}, args...)...)
	t.Cleanup(func() { exec.Command("umount", "--lazy", args[len(args)-1]).Run() })
}

func mustRun(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", command, err, out)
	}
}

// What the API server has against a pod in a namespace that enforces the Pod Security Standard restricted is all that the pod has
// beyond it: nothing, and of the hook of `helm uninstall`, which has to run where pods get no network, the host's network.
func TestThePodsOfWebhookAndHookHaveNothingBeyondTheRestrictedStandard(t *testing.T) {
	t.Parallel()
	chart := renderChart(t, "--namespace=detour-system", "--set=mesh=osm,admission=webhook")
	for name, tt := range map[string]struct{ kind, account, against string }{
		"detour-webhook":   {"Deployment", "detour-webhook", ""},
		"detour-uninstall": {"Job", "detour-uninstall", `violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := newNamespace(t, "pod-security.kubernetes.io/enforce=restricted")
			mustApply(t, mustParse(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: "+tt.account+", namespace: "+namespace+"}}"))
			code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), podOf(t, find(t, chart, tt.kind, name), namespace, "pod").Object)
			var status struct{ Message string }
			if err != nil || json.Unmarshal(answer, &status) != nil {
				t.Fatalf("%v: %s", err, answer)
			}
			if tt.against == "" && code != http.StatusCreated || tt.against != "" && !strings.HasSuffix(status.Message, tt.against) {
				t.Errorf("%d %s, want %q", code, status.Message, tt.against)
			}
		})
	}
}
