package verify

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/podns"
)

// listenAs makes this test's binary a program of a pod's: "UID:GID PROTOCOL/ADDRESS...".
const listenAs = "VERIFY_LISTEN_AS"

func TestMain(m *testing.M) {
	if what := os.Getenv(listenAs); what != "" {
		os.Exit(beProgram(strings.Fields(what)))
	}
	os.Exit(nettest.Main(m))
}

// beProgram listens until standard input ends.
func beProgram(args []string) int {
	var uid, gid int
	_, err := fmt.Sscanf(args[0], "%d:%d", &uid, &gid)
	for _, become := range []func() error{func() error { return syscall.Setgid(gid) }, func() error { return syscall.Setuid(uid) }} {
		if err == nil {
			err = become()
		}
	}
	for _, at := range args[1:] {
		protocol, address, _ := strings.Cut(at, "/")
		var listener io.Closer
		if strings.HasPrefix(protocol, "udp") {
			listener, err = net.ListenPacket(protocol, address)
		} else {
			listener, err = net.Listen(protocol, address)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer listener.Close()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("listening")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

var plugin = nettest.Programs("../../plugin/detour")

const uid = "0f7e3a5c-1b2d-4c3e-9f00-0123456789ab"

// scene is pod shop/web in a real namespace: programmed by the plugin's ADD, with programs that listen.
type scene struct {
	t     *testing.T
	world *nettest.World
	dir   string
	conf  map[string]any // the net conf
	// objects are the manifests that both ADD and verify ask.
	pod, config map[string]any
}

// newScene returns a pod that is as it should be, apart from ADD, which add does, and programs, which run starts.
func newScene(t *testing.T, mesh, sidecar string) *scene {
	t.Helper()
	nettest.RequireNetns(t)
	s := &scene{t: t, world: nettest.StartWorld(t), dir: t.TempDir()}
	s.conf = map[string]any{"type": "detour", "mesh": mesh, "manifests": s.path("manifests"), "stateDir": s.path("state"), "timeout": "1m"}
	s.pod = map[string]any{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": map[string]any{"namespace": "shop", "name": "web", "annotations": map[string]any{}},
		"spec":     map[string]any{"containers": []any{map[string]any{"name": "app"}, map[string]any{"name": sidecar}}},
		"status": map[string]any{"containerStatuses": []any{
			map[string]any{"name": "app", "ready": true, "containerID": "containerd://" + containerID("app")},
			map[string]any{"name": sidecar, "ready": true, "containerID": "containerd://" + containerID(sidecar)},
		}},
	}
	s.config = map[string]any{
		"kind": "MeshConfig", "apiVersion": "config.openservicemesh.io/v1alpha2",
		"metadata": map[string]any{"namespace": "osm-system", "name": "osm-mesh-config"},
		"spec":     map[string]any{"traffic": map[string]any{}, "sidecar": map[string]any{}},
	}
	for _, folder := range []string{"manifests", "proc", "net.d", "pods", "bin"} {
		if err := os.Mkdir(s.path(folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// newOSM is a fine pod of mesh osm: programmed, with its sidecar listening.
func newOSM(t *testing.T, backend string) *scene {
	t.Helper()
	s := newScene(t, "osm", "envoy")
	s.conf["backend"] = backend
	s.add()
	s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003", "tcp4/127.0.0.1:15000", "tcp/:15010")
	s.run("app", "web", "1000:1000", "tcp/:8080")
	return s
}

func containerID(name string) string {
	return strings.Repeat(fmt.Sprintf("%02x", name[0]), 32)
}

func (s *scene) path(name string) string { return filepath.Join(s.dir, name) }

func (s *scene) write(name string, object any) {
	s.t.Helper()
	data, err := json.Marshal(object)
	if err == nil {
		err = os.WriteFile(s.path(name), data, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// set sets a field of an object by its path and writes all files.
func (s *scene) set(object map[string]any, path string, value any) {
	s.t.Helper()
	fields := strings.Split(path, "/")
	for _, f := range fields[:len(fields)-1] {
		object = object[f].(map[string]any)
	}
	object[fields[len(fields)-1]] = value
	s.writeManifests()
}

func (s *scene) writeManifests() {
	s.write("net.d/10-pods.conflist", map[string]any{"cniVersion": "1.1.0", "name": "pods", "plugins": []any{map[string]any{"type": "bridge"}, s.conf}})
	s.write("manifests/pod.json", s.pod)
	s.write("manifests/config.json", s.config)
}

// annotate adds an annotation to the pod.
func (s *scene) annotate(name, value string) {
	s.t.Helper()
	s.pod["metadata"].(map[string]any)["annotations"].(map[string]any)[name] = value
	s.writeManifests()
}

// add is what a runtime does. By default, the pod has an address of each family.
func (s *scene) add(addresses ...string) {
	s.t.Helper()
	if addresses == nil {
		addresses = []string{nettest.PodIPv4.String() + "/24", nettest.PodIPv6.String() + "/64"}
	}
	s.addInterface("eth0", addresses...)
}

func (s *scene) addInterface(name string, addresses ...string) {
	s.t.Helper()
	s.writeManifests()
	ips := []any{}
	for _, a := range addresses {
		ips = append(ips, map[string]any{"address": a})
	}
	conf := map[string]any{"cniVersion": "1.1.0", "name": "pods", "prevResult": map[string]any{"cniVersion": "1.1.0", "ips": ips}}
	maps.Copy(conf, s.conf)
	data, err := json.Marshal(conf)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(plugin(s.t), "detour"))
	cmd.Stdin = bytes.NewReader(data)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME="+name, "CNI_PATH=/nowhere", "CNI_NETNS="+s.world.Pod.Path(),
		"CNI_ARGS=K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID="+uid)
	s.set(s.pod, "metadata/uid", uid)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("ADD: %v: %s", err, out)
	}
}

// run starts a program called name in a container of the pod; without a container, it is not in sight. It ends with the test.
func (s *scene) run(container, name, as string, at ...string) {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	link := s.path("bin/" + name)
	if err := os.Symlink(self, link); err != nil && !os.IsExist(err) {
		s.t.Fatal(err)
	}
	cmd := exec.Command(link)
	cmd.Env = append(os.Environ(), listenAs+"="+strings.Join(slices.Concat([]string{as}, at), " "))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.world.Pod.Do(cmd.Start); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "listening\n" {
		s.t.Fatalf("%s: %s", name, line)
	}
	if container != "" {
		s.show(cmd.Process.Pid, fmt.Sprintf("/kubepods/pod%s/%s", uid, containerID(container)))
	}
}

// show makes a real process visible in the scene's /proc, in a control group.
func (s *scene) show(pid int, cgroup string) {
	s.t.Helper()
	dir := s.path("proc/" + strconv.Itoa(pid))
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{"status", "stat", "fd", "ns"} {
		if err := os.Symlink(fmt.Sprintf("/proc/%d/%s", pid, name), filepath.Join(dir, name)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::"+cgroup+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) verifier() Verifier {
	return Verifier{Finder: podns.Finder{StateDir: s.path("state"), Proc: s.path("proc"), PodLogs: s.path("pods")}, ConfDir: s.path("net.d")}
}

// verify returns what is found out about the pod.
func (s *scene) verify() Pod {
	s.t.Helper()
	report, err := s.verifier().Pods(s.t.Context(), []pod.ID{{Namespace: "shop", Name: "web"}}, "")
	if err != nil {
		s.t.Fatal(err)
	}
	if len(report.Pods) != 1 || report.Result != report.Pods[0].Result && report.Pods[0].Result != Skipped {
		s.t.Fatalf("report %+v", report)
	}
	return report.Pods[0]
}

// wantFine checks that nothing is found.
func (s *scene) wantFine() {
	s.t.Helper()
	if p := s.verify(); p.Result != Fine || len(p.Findings) > 0 || len(p.Unknown) > 0 {
		s.t.Errorf("%+v", p)
	}
}

// want checks that exactly these findings are there, "NAME TEXT", with texts that may be parts.
func (s *scene) want(wants ...string) {
	s.t.Helper()
	p := s.verify()
	s.compare(p.Findings, wants)
	if p.Result != Wrong || len(p.Unknown) > 0 {
		s.t.Errorf("%+v", p)
	}
}

func (s *scene) compare(found []Finding, wants []string) {
	s.t.Helper()
	rest := slices.Clone(found)
	for _, want := range wants {
		name, text, _ := strings.Cut(want, " ")
		i := slices.IndexFunc(rest, func(f Finding) bool { return string(f.Name) == name && strings.Contains(f.Text, text) })
		if i < 0 {
			s.t.Errorf("%q is not found", want)
			continue
		}
		if rest[i].Do == "" {
			s.t.Errorf("%q: nothing says what to do", want)
		}
		rest = slices.Delete(rest, i, i+1)
	}
	if s.t.Failed() || len(rest) > 0 {
		s.t.Errorf("found %q", found)
	}
}

// inPod runs a program in the pod's network namespace.
func (s *scene) inPod(name string, args ...string) {
	s.t.Helper()
	err := s.world.Pod.Do(func() error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}
