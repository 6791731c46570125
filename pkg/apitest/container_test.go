//go:build kubeapi

package apitest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// container is a container of a manifest's pod, which runc runs with what the manifest gives it: its user, capabilities and mounts. Its
// image and the host's folders are the test's; seccomp is the runtime's and not here.
type container struct {
	t         *testing.T
	pod, spec map[string]any // of the pod; of the container
	dir       string         // the image, and the host's folders under host/
	token     string
	env       map[string]string
	args      []string // behind the manifest's
	netns     string   // "" is the host's
	output    logBuffer
}

// newContainer takes a container of a pod's template. Its token may be one that nobody knows.
func newContainer(t *testing.T, workload object, list, token string) *container {
	t.Helper()
	nettest.RequireNetns(t)
	pod := podOf(t, workload, "any", "any").Object["spec"].(map[string]any)
	c := &container{t: t, pod: pod, spec: pod[list].([]any)[0].(map[string]any), dir: t.TempDir(), token: token}
	for _, folder := range []string{"image", "bundle", "state", "host/opt/cni/bin", "host/etc/cni/net.d", "host/run/detour", "host/run/netns", "host/var/lib/cni/results"} {
		if err := os.MkdirAll(filepath.Join(c.dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.put("host/etc/cni/net.d/10-net.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`)
	return c
}

func (c *container) path(name string) string { return filepath.Join(c.dir, name) }

func (c *container) put(name, text string) {
	c.t.Helper()
	path := c.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// read is a file's content, "" if there is no such file.
func (c *container) read(name string) string {
	data, _ := os.ReadFile(c.path(name))
	return string(data)
}

// volume is the folder that stands for a volume. The kubelet makes its files: a credential's with mode 0600, and links to them.
func (c *container) volume(v map[string]any) string {
	name := "volumes/" + v["name"].(string)
	switch {
	case v["hostPath"] != nil:
		return c.path("host" + v["hostPath"].(map[string]any)["path"].(string))
	case v["configMap"] != nil:
		c.put(name+"/netconf.json", `{"mesh": "osm"}`)
		if err := os.Chmod(c.path(name+"/netconf.json"), 0o644); err != nil {
			c.t.Fatal(err)
		}
	case v["projected"] != nil:
		ca, err := os.ReadFile(kubernetes.file("ca.crt"))
		if err != nil {
			c.t.Fatal(err)
		}
		c.put(name+"/token", c.token)
		c.put(name+"/ca.crt", string(ca))
		user, err := strconv.Atoi(fmt.Sprint(c.pod["securityContext"].(map[string]any)["runAsUser"]))
		for _, file := range []string{"/token", "/ca.crt"} { // the kubelet gives them to the containers' user
			err = errors.Join(err, os.Chown(c.path(name+file), user, -1))
		}
		if err != nil {
			c.t.Fatal(err)
		}
	default:
		c.t.Fatalf("the test does not know the volume %v", v)
	}
	return c.path(name)
}

// bundle writes what runc reads.
func (c *container) bundle() string {
	c.t.Helper()
	type entry = map[string]any
	mounts := []entry{{"destination": "/proc", "type": "proc", "source": "proc"}}
	for _, m := range c.spec["volumeMounts"].([]any) {
		mount := m.(map[string]any)
		i := slices.IndexFunc(c.pod["volumes"].([]any), func(v any) bool { return v.(map[string]any)["name"] == mount["name"] })
		if i < 0 {
			continue // taken away
		}
		options := []string{"rbind", "rprivate"}
		if mount["mountPropagation"] == "HostToContainer" {
			options = []string{"rbind", "rslave"}
		}
		if mount["readOnly"] == true {
			options = append(options, "ro")
		}
		mounts = append(mounts, entry{"destination": mount["mountPath"], "type": "bind", "source": c.volume(c.pod["volumes"].([]any)[i].(map[string]any)), "options": options})
	}
	podContext, own := c.pod["securityContext"].(map[string]any), c.spec["securityContext"].(map[string]any)
	capabilities := []string{}
	given := own["capabilities"].(map[string]any)
	for _, name := range list(given["add"]) {
		capabilities = append(capabilities, "CAP_"+name)
	}
	if !slices.Equal(list(given["drop"]), []string{"ALL"}) {
		c.t.Errorf("it drops %v, not all capabilities", given["drop"])
	}
	args := slices.Concat(list(c.spec["command"]), list(c.spec["args"]), c.args)
	var env []string
	for name, value := range c.env {
		env = append(env, name+"="+value)
	}
	namespaces := []entry{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}
	if c.netns != "" {
		namespaces = append(namespaces, entry{"type": "network", "path": c.netns})
	}
	c.put("bundle/config.json", string(mustJSON(c.t, entry{
		"ociVersion": "1.0.2",
		"process": entry{
			"user": entry{"uid": podContext["runAsUser"], "gid": podContext["runAsGroup"]}, "args": args, "env": env, "cwd": "/",
			"capabilities":    entry{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
			"noNewPrivileges": own["allowPrivilegeEscalation"] == false,
		},
		"root": entry{"path": c.path("image"), "readonly": own["readOnlyRootFilesystem"] == true}, "mounts": mounts,
		"linux": entry{"namespaces": namespaces},
	})))
	return c.path("bundle")
}

func list(values any) (texts []string) {
	all, _ := values.([]any)
	for _, v := range all {
		texts = append(texts, v.(string))
	}
	return texts
}

// start runs the program until the test ends. The image has the programs, and the folders that a mount needs.
func (c *container) start() {
	c.t.Helper()
	for _, name := range []string{"detour-agent", "detour"} {
		program, err := builtProgram(name)
		if err != nil {
			c.t.Fatal(err)
		}
		if err := os.Link(program, c.path("image/"+name)); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := os.Chmod(c.path("."), 0o755); err != nil { // another user must find the image
		c.t.Fatal(err)
	}
	id := fmt.Sprintf("detour-%d-%d", os.Getpid(), scenes.Add(1))
	runc := func(args ...string) *exec.Cmd {
		return exec.Command("runc", append([]string{"--root", c.path("state")}, args...)...)
	}
	cmd := runc("run", "--bundle", c.bundle(), "--pid-file", c.path("pid"), id)
	cmd.Stdout, cmd.Stderr = &c.output, &c.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // which runc passes on, if the test is killed
	var ended sync.WaitGroup
	ended.Go(func() {
		runtime.LockOSThread() // it must live as long as the program
		defer runtime.UnlockOSThread()
		cmd.Run() // how it ends is of no interest
	})
	c.t.Cleanup(func() {
		for stop := true; stop; {
			if pid, err := strconv.Atoi(c.read("pid")); err == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			stopped := make(chan struct{})
			go func() { ended.Wait(); close(stopped) }()
			select {
			case <-stopped:
				stop = false
			case <-time.After(time.Second): // it may not have begun
			}
		}
		runc("delete", "--force", id).Run() // it has mostly done so itself
		c.t.Logf("it wrote:\n%s", c.output.String())
	})
}

// files are the host's files with their modes, without what the runtime put there.
func (c *container) files() (all []string) {
	c.t.Helper()
	err := filepath.WalkDir(c.path("host"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() && path != c.path("host/run/detour") {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all = append(all, fmt.Sprintf("%s %s", info.Mode(), strings.TrimPrefix(path, c.path("host"))))
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

// builtProgram builds a program of plugin/, once for all tests.
func builtProgram(name string) (string, error) {
	build, _ := builds.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		program := kubernetes.file(name + ".built")
		cmd := exec.Command("go", "build", "-o", program, "../../plugin/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the image has no libraries
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, &out)
		}
		return program, nil
	}))
	return build.(func() (string, error))()
}

var builds sync.Map
