package podns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

const (
	uid1 = "0f7e3a5c-1b2d-4c3e-9f00-0123456789ab"
	uid2 = "1f7e3a5c-1b2d-4c3e-9f00-0123456789ab"
	hash = "3f2a9c0d4e5b6a718293a4b5c6d7e8f9" // a static pod's
)

var web = pod.ID{Namespace: "shop", Name: "web"}

// fake is a Finder of a tree without any pod; PID 1 is the node's.
func fake(t *testing.T) Finder {
	t.Helper()
	dir := t.TempDir()
	f := Finder{StateDir: dir + "/run", Proc: dir + "/proc", PodLogs: dir + "/pods"}
	f.addProcess(t, 1, 1, "0::/init.scope", "host")
	return f
}

// addProcess adds a process; namespaces of the same name are the same.
func (f Finder) addProcess(t *testing.T, pid, started int, cgroup, netns string) {
	t.Helper()
	dir, namespace := filepath.Join(f.Proc, strconv.Itoa(pid)), filepath.Join(f.Proc, "namespace-"+netns)
	stat := fmt.Sprintf("%d (a) b) S 1%s %d 0 0", pid, strings.Repeat(" 0", 17), started)
	err := errors.Join(
		os.MkdirAll(dir+"/ns", 0o755),
		os.WriteFile(dir+"/cgroup", []byte(cgroup+"\n"), 0o600),
		os.WriteFile(dir+"/stat", []byte(stat), 0o600),
		os.WriteFile(namespace, nil, 0o600),
		os.Symlink(namespace, dir+"/ns/net"),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func (f Finder) addLogs(t *testing.T, folder string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(f.PodLogs, folder), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (f Finder) addRecord(t *testing.T, container string, r attachment.Record) {
	t.Helper()
	r.Key = attachment.Key{Network: "pods", ContainerID: container, IfName: "eth0"}
	if err := attachment.NewStore(f.StateDir).Save(r); err != nil {
		t.Fatal(err)
	}
}

func TestControlGroupsNameThePod(t *testing.T) {
	t.Parallel()
	under := strings.ReplaceAll(uid1, "-", "_")
	for cgroup, want := range map[string][]string{
		"0::/kubepods/burstable/pod" + uid1 + "/4f5e":                                                             {uid1},
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-4f5e.scope": {uid1},
		"0::/kubepods.slice/kubepods-pod" + under + ".slice/cri-containerd-4f5e.scope":                            {uid1},
		"0::/../../kubepods-burstable-pod" + under + ".slice/cri-containerd-4f5e.scope":                           {uid1},
		"0::/../../pod" + uid1 + "/4f5e":                                                                          {uid1},
		"0::/../pod" + uid1:                                                                                       {uid1},
		"12:pids:/kubepods/pod" + hash + "/4f5e\n4:memory:/kubepods/pod" + hash + "/4f5e":                         {hash},
		"0::/kubepods/pod" + uid1 + "/4f5e/kubelet.slice/kubelet-kubepods-pod" + hash + ".slice/a.scope":          {uid1, hash}, // kind in a pod
		"0::/system.slice/docker-4f5e.scope":                                                                      nil,
		"0::/kubepods/burstable":                                                                                  nil,
		"0::/":                                                                                                    nil,
		"":                                                                                                        nil,
	} {
		if got := podsOf(cgroup); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", cgroup, got, want)
		}
	}
}

// A node without detour has log folders and control groups.
func TestAPodWithoutARecordIsFoundByItsProcesses(t *testing.T) {
	t.Parallel()
	f := fake(t)
	f.addLogs(t, "shop_web_"+uid1)
	f.addLogs(t, "shop_webserver_"+uid2)
	f.addLogs(t, "kube-system_etcd-node1_"+hash)
	f.addLogs(t, "lost+found")
	f.addProcess(t, 30, 900, "0::/kubepods/pod"+uid1+"/app", "web")
	f.addProcess(t, 20, 990, "0::/kubepods/pod"+uid1+"/app/nested", "nested")
	f.addProcess(t, 999, 800, "0::/kubepods/pod"+uid1+"/sandbox", "web") // PIDs start again some day
	f.addProcess(t, 40, 950, "0::/user.slice", "web")                    // nsenter
	f.addProcess(t, 50, 700, "0::/kubepods/pod"+uid2+"/app", "webserver")
	f.addProcess(t, 60, 700, "0::/kubepods/pod"+hash+"/app", "host")
	wants := []Pod{
		{ID: pod.ID{Namespace: "kube-system", Name: "etcd-node1", UID: hash}, UID: hash, Netns: f.Proc + "/60/ns/net", PIDs: []int{60}},
		{ID: pod.ID{Namespace: "shop", Name: "web", UID: uid1}, UID: uid1, Netns: f.Proc + "/999/ns/net", PIDs: []int{20, 30, 40, 999}},
		{ID: pod.ID{Namespace: "shop", Name: "webserver", UID: uid2}, UID: uid2, Netns: f.Proc + "/50/ns/net", PIDs: []int{50}},
	}
	for _, want := range wants {
		for _, uid := range []string{"", want.UID} {
			if got, err := f.Find(want.ID, uid); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		}
	}
	if got, err := f.All(); err != nil || !reflect.DeepEqual(got, wants) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestWhatCannotBeFoundIsSaid(t *testing.T) {
	t.Parallel()
	f := fake(t)
	wantError := func(uid string, wants ...string) error {
		t.Helper()
		got, err := f.Find(web, uid)
		for _, want := range wants {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %+v, %v; want %q", got, err, want)
			}
		}
		return err
	}
	wantError("", "no pod shop/web on this node", f.StateDir, f.PodLogs)

	f.addLogs(t, "shop_web_"+uid1)
	if err := wantError("", "the pod is gone: shop/web (UID "+uid1+")"); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
	wantError(uid2, "no pod shop/web with UID "+uid2, "have "+uid1)

	f.addProcess(t, 20, 20, "0::/kubepods/pod"+uid1+"/app", "a")
	f.addLogs(t, "shop_web_"+uid2) // it is gone: its log folder stays for a while
	if got, err := f.Find(web, ""); err != nil || got.UID != uid1 {
		t.Errorf("got %+v, %v", got, err)
	}
	f.addProcess(t, 30, 30, "0::/kubepods/pod"+uid2+"/app", "b")
	f.addLogs(t, "shop_web_"+hash) // gone, too
	err := wantError("", "2 pods are called shop/web", "choose one by --pod-uid: "+uid1+", "+uid2)
	if strings.Contains(err.Error(), hash) {
		t.Error(err)
	}
	if got, err := f.Find(web, uid2); err != nil || got.PIDs[0] != 30 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := (Finder{StateDir: f.StateDir, Proc: "/nowhere", PodLogs: f.PodLogs}).Find(web, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// idOf is the namespace's ID as ADD records it.
func idOf(t *testing.T, n *nettest.Namespace) string {
	t.Helper()
	ns, err := netns.Open(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	id, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestARecordLeadsToTheNamespaceAndItsProcesses(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "pod")
	sleep := exec.Command("sleep", "1000")
	if err := ns.Do(sleep.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	})
	f := Finder{StateDir: t.TempDir(), PodLogs: t.TempDir()}
	added := time.Unix(1700000000, 0).UTC()
	record := func(outcome attachment.Outcome, at time.Duration) attachment.Record {
		return attachment.Record{Netns: ns.Path(), NamespaceID: idOf(t, ns), Pod: "shop/web", PodUID: uid1, Outcome: outcome, Time: added.Add(at)}
	}
	f.addRecord(t, "skipped", record(attachment.Skipped, 2*time.Hour))
	f.addRecord(t, "first", record(attachment.Programmed, 0))
	f.addRecord(t, "second", record(attachment.Programmed, time.Hour))
	earlier := record(attachment.Programmed, 3*time.Hour)
	earlier.NamespaceID = "4-1" // the runtime has used the path before
	f.addRecord(t, "earlier", earlier)

	got, err := f.Find(web, "")
	if err != nil || got.UID != uid1 || got.Netns != ns.Path() || !reflect.DeepEqual(got.PIDs, []int{sleep.Process.Pid}) || got.Record == nil || got.Record.ContainerID != "second" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// The runtime's path is not mounted everywhere. The namespace's ID still tells which record is of this namespace.
func TestARecordWithoutItsPathIsFoundByTheProcesses(t *testing.T) {
	t.Parallel()
	f := fake(t)
	f.addProcess(t, 20, 20, "0::/kubepods/pod"+uid1+"/app", "web")
	id, err := identify(f.netns(20))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(f.Proc, "20/cgroup") // it is no namespace
	f.addRecord(t, "current", attachment.Record{Netns: file, NamespaceID: id, Pod: "shop/web", PodUID: uid1, Outcome: attachment.Programmed})
	f.addRecord(t, "earlier", attachment.Record{Netns: file, Pod: "shop/web", PodUID: uid1, Outcome: attachment.Programmed, Time: time.Unix(1800000000, 0)})
	got, err := f.Find(web, "")
	if err != nil || got.Netns != f.Proc+"/20/ns/net" || got.Record == nil || got.Record.ContainerID != "current" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestTheControlGroupTellsTheUIDThatTheRuntimeDidNotPass(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "pod")
	f := fake(t)
	f.addProcess(t, 10, 10, "0::/kubepods/pod"+uid1+"/app", "other")
	f.addRecord(t, "c", attachment.Record{Netns: ns.Path(), Pod: "shop/web", Outcome: attachment.Programmed})
	if got, err := f.Find(web, ""); err != nil || got.UID != "" || got.Record == nil {
		t.Errorf("got %+v, %v", got, err)
	}
	f.addLogs(t, "shop_web_"+uid2)
	f.addProcess(t, 20, 20, "0::/kubepods/pod"+uid2+"/app", "web")
	if err := errors.Join(os.Remove(f.netns(20)), os.Symlink(ns.Path(), f.netns(20))); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Find(web, ""); err != nil || got.UID != uid2 || got.Record == nil || got.Netns != ns.Path() || len(got.PIDs) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAnUnreadableRecordHidesNoPod(t *testing.T) {
	t.Parallel()
	f := fake(t)
	f.addRecord(t, "c", attachment.Record{Pod: "shop/web"})
	if err := os.WriteFile(filepath.Join(f.StateDir, "attachments/pods/c@eth0.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.addLogs(t, "shop_web_"+uid1)
	f.addProcess(t, 20, 20, "0::/kubepods/pod"+uid1+"/app", "web")
	if got, err := f.Find(web, ""); err != nil || got.Record != nil || got.PIDs[0] != 20 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// Another user's namespaces can't be seen.
func TestWithoutPrivilegeTheErrorSaysSo(t *testing.T) {
	t.Parallel()
	f := fake(t)
	f.addLogs(t, "shop_web_"+uid1)
	f.addProcess(t, 20, 20, "0::/kubepods/pod"+uid1+"/app", "web")
	all, err := f.WithDefaults().processes()
	if err != nil {
		t.Fatal(err)
	}
	all[1].netns, all[1].denied = "", true
	if _, err := f.first(uid1, all); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "run this as root") {
		t.Errorf("got %v", err)
	}
}
