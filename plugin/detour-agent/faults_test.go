//go:build faults

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/faults"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/nettest"
)

// networks are the shapes of a node's network.
var networks = map[string]tree{
	"a list":             {"net.d/10-x.conflist": bridge},
	"a .conf":            {"net.d/10-x.conf": singlePlugin},
	"a .json":            {"net.d/10-x.json": singlePlugin},
	"Multus and a list":  {"net.d/00-multus.conf": `{"cniVersion": "0.3.1", "name": "multus", "clusterNetwork": "/host/etc/cni/net.d/10-x.conflist", "type": "multus-shim"}`, "net.d/10-x.conflist": bridge},
	"Multus with a copy": {"net.d/00-multus.conflist": `{"cniVersion": "1.0.0", "name": "multus", "plugins": [{"type": "multus", "delegates": [` + bridge + `]}]}`},
}

const singlePlugin = `{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}`

// look says what is wrong with a node that is on its way between two trees, or back: each file is old or new, the runtime can load
// its network, and a list with the plugin has all that the plugin needs.
func (n *hostNode) look(before, after tree) error {
	now, _ := n.holds()
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(merge(before, after, now))) {
		text, is := now[path]
		old, was := before[path]
		next, will := after[path]
		// The installer's own list loses its entry before it goes.
		ours := strings.HasSuffix(path, "-made-by-detour.conflist") && !strings.Contains(text, `"detour"`)
		if (is != was || text != old) && (is != will || text != next) && !ours {
			errs = append(errs, fmt.Errorf("%s is neither old nor new: %.300q", path, text))
		}
		if strings.Contains(text, `"type":"detour"`) || strings.Contains(text, `"type": "detour"`) {
			for _, needs := range []string{"bin/detour", "net.d/" + install.TokenName, "net.d/" + install.KubeconfigName} {
				if now[needs] == "" {
					errs = append(errs, fmt.Errorf("%s has the plugin, and there is no %s", path, needs))
				}
			}
		}
	}
	return errors.Join(append(errs, n.load())...)
}

func merge(trees ...tree) tree {
	all := tree{}
	for _, t := range trees {
		maps.Copy(all, t)
	}
	return all
}

// done reports whether a verb has made the node hold what it should, and nothing else.
func (n *hostNode) done(verb string, want tree) bool {
	now, temps := n.holds()
	_, err := os.Lstat(filepath.Join(n.root, "state/agent.sock"))
	left, _ := os.ReadDir(filepath.Join(n.root, "state"))
	return maps.Equal(now, want) && len(temps) == 0 && (verb == "run" && err == nil || verb == "uninstall" && len(left) == 0)
}

// finish runs a verb without faults until the node holds what it should.
func (a agents) finish(t *testing.T, n *hostNode, verb string, want tree) string {
	t.Helper()
	var said safeBuffer
	a.under(t, n, verb, &said, func() bool { return n.done(verb, want) }, func(faults.Call) faults.Action { return faults.Action{} })
	return said.String()
}

// under runs a verb under faults until it ends or, as an agent does not end, until done.
func (a agents) under(t *testing.T, n *hostNode, verb string, said *safeBuffer, done func() bool, fault faults.Fault) faults.Result {
	t.Helper()
	var pid atomic.Int64
	cmd := a.command(t, n, verb)
	cmd.Stderr = said
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for deadline := time.Now().Add(time.Minute); verb == "run"; time.Sleep(5 * time.Millisecond) {
			select {
			case <-stop:
				return
			default:
			}
			if pid.Load() != 0 && (done() || time.Now().After(deadline)) {
				_ = syscall.Kill(int(pid.Load()), syscall.SIGTERM)
				return
			}
		}
	}()
	r, err := faults.Run(cmd, func(c faults.Call) faults.Action {
		if c.Program != "detour-agent" {
			return faults.Action{}
		}
		pid.Store(int64(c.PID))
		return fault(c)
	})
	close(stop)
	<-stopped
	if err != nil {
		t.Fatal(err)
	}
	r.Wait()
	return r
}

// changing are the calls that change files.
var changing = strings.Fields("write pwrite64 writev copy_file_range sendfile splice rename renameat renameat2 link linkat symlink symlinkat " +
	"unlink unlinkat rmdir mkdir mkdirat mknod mknodat fsync fdatasync truncate ftruncate fallocate chmod fchmod fchmodat chown lchown fchown fchownat bind")

// changes reports whether a call changes what is on the node.
func (n *hostNode) changes(c faults.Call) bool {
	return strings.Contains(c.Detail, n.root) && (slices.Contains(changing, c.Name) || strings.HasPrefix(c.Name, "open") && strings.Contains(c.Detail, "/.detour-"))
}

// journey is what a verb makes of a node.
type journey struct {
	name, verb    string
	image         image
	before, after tree
}

// journeys are all of a network: its installation, the renewal of credentials, binary and entry, and its end.
func journeys(t *testing.T, a agents, network tree) []journey {
	t.Helper()
	to := func(before tree, i image) tree {
		n := newHostNode(t, before, i)
		var after tree
		var said safeBuffer
		a.under(t, n, "run", &said, func() bool {
			now, temps := n.holds()
			_, err := os.Lstat(filepath.Join(n.root, "state/agent.sock"))
			after = now
			return err == nil && len(temps) == 0 && strings.Contains(fmt.Sprint(now), "detour-kubeconfig") && strings.HasSuffix(now["bin/detour"], i.version) &&
				strings.Contains(strings.ReplaceAll(fmt.Sprint(now), " ", ""), `"type":"detour"`) && (i == images[0] || strings.Contains(fmt.Sprint(now), "onError"))
		}, func(faults.Call) faults.Action { return faults.Action{} })
		return after
	}
	first := to(network, images[0])
	return []journey{
		{"install", "run", images[0], network, first},
		{"renew", "run", images[1], first, to(first, images[1])},
		{"uninstall", "uninstall", images[0], first, network},
	}
}

var strikes atomic.Int64

// Killed before any call that changes a file, the agent leaves a node on which pods start, and the next agent or removal ends
// where an undisturbed one would. Between any two calls, the runtime could load its network.
func TestKilledAtEveryFileOperation(t *testing.T) {
	a := newAgents(t)
	t.Cleanup(func() { fmt.Printf("%d kills\n", strikes.Load()) })
	for name, network := range networks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, j := range journeys(t, a, network) {
				for at := 1; ; at += number("FAULTS_STRIDE") {
					n := newHostNode(t, j.before, j.image)
					count := 0
					var said safeBuffer
					r := a.under(t, n, j.verb, &said, func() bool { return n.done(j.verb, j.after) }, func(c faults.Call) faults.Action {
						if !n.changes(c) {
							return faults.Action{}
						}
						if err := n.look(j.before, j.after); err != nil {
							t.Errorf("%s: before %s: %v", j.name, &c, err)
						}
						if count++; count == at {
							return faults.Kill(faults.Program)
						}
						return faults.Action{}
					})
					if r.Struck == nil {
						if now, temps := n.holds(); r.Err != nil || !maps.Equal(now, j.after) || len(temps) > 0 {
							t.Errorf("%s: undisturbed: %v, %q, %q: %s", j.name, r.Err, now, temps, &said)
						}
						t.Logf("%s: %d calls", j.name, at-1)
						break
					}
					strikes.Add(1)
					where := fmt.Sprintf("%s: killed before %s", j.name, r.Struck)
					if err := n.look(j.before, j.after); err != nil {
						t.Errorf("%s: %v", where, err)
					}
					verb, want := j.verb, j.after
					if at%2 == 0 { // the other one
						verb, want = map[string]string{"run": "uninstall", "uninstall": "run"}[verb], network
						if verb == "run" {
							want = j.before
						}
					}
					next := a.finish(t, n, verb, want)
					if now, temps := n.holds(); !maps.Equal(now, want) || len(temps) > 0 {
						t.Errorf("%s, then %s: there is\n%q %q, want\n%q\n%s", where, verb, now, temps, want, next)
					}
				}
			}
		})
	}
}

// number is an environment variable's number, 1 if it has none.
func number(variable string) int {
	n, _ := strconv.Atoi(os.Getenv(variable))
	return max(n, 1)
}

var errnos = []unix.Errno{unix.ENOSPC, unix.EROFS, unix.EIO, unix.EDQUOT, unix.EACCES}

// A call that opens or changes a file fails until the agent has said so: what was installed works on, and what the agent should do
// is done once the call works again, by the same agent. Each call meets one errno in each of ROUNDS (1).
func TestEveryFileOperationFails(t *testing.T) {
	a := newAgents(t)
	var failures atomic.Int64
	t.Cleanup(func() { fmt.Printf("%d failures\n", failures.Load()) })
	for name, network := range networks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, j := range journeys(t, a, network) {
				for at := 1; ; at += number("FAULTS_STRIDE") {
					struck := true
					for r := range number("ROUNDS") {
						struck = a.fail(t, j, at, errnos[(at+r)%len(errnos)]) && struck
					}
					if !struck {
						break
					}
					failures.Add(1)
				}
			}
		})
	}
}

// fail makes call number at of a journey fail. It returns false if there is no such call.
func (a agents) fail(t *testing.T, j journey, at int, errno unix.Errno) bool {
	t.Helper()
	n := newHostNode(t, j.before, j.image)
	var said safeBuffer
	count, failing := 0, ""
	r := a.under(t, n, j.verb, &said, func() bool { return n.done(j.verb, j.after) }, func(c faults.Call) faults.Action {
		if !n.touches(c) {
			return faults.Action{}
		}
		if err := n.look(j.before, j.after); err != nil {
			t.Errorf("%s: %s, before %s: %v", j.name, errno, &c, err)
		}
		call := c.Name + random.ReplaceAllString(c.Detail, "")
		if count++; count == at {
			failing = call
		}
		if call != failing || strings.Contains(said.String(), errno.Error()) {
			return faults.Action{}
		}
		return faults.Errno(errno)
	})
	if r.Struck == nil {
		return false
	}
	where := fmt.Sprintf("%s: %s of %s", j.name, errno, r.Struck)
	copiedOtherwise := r.Struck.Name == "copy_file_range" && errno == unix.EIO // by read and write
	if n.matters(*r.Struck) && !copiedOtherwise && !strings.Contains(said.String(), errno.Error()) {
		t.Errorf("%s: the agent does not say so: %s", where, &said)
	}
	if j.verb == "uninstall" && r.Err != nil {
		if !strings.Contains(said.String(), errno.Error()) {
			t.Errorf("%s: it says %s", where, &said)
		}
		a.finish(t, n, j.verb, j.after)
	} else if r.Err != nil {
		t.Errorf("%s: the agent ended: %v: %s", where, r.Err, &said)
	}
	if now, temps := n.holds(); !maps.Equal(now, j.after) || len(temps) > 0 {
		t.Errorf("%s: there is\n%q %q, want\n%q\n%s", where, now, temps, j.after, &said)
	}
	return true
}

// random is what differs in the names of temporary files.
var random = regexp.MustCompile(`[0-9]+\.tmp`)

// touches reports whether a call opens or changes what is on the node. The agent's own configuration is not.
func (n *hostNode) touches(c faults.Call) bool {
	return strings.Contains(c.Detail, n.root) && !strings.Contains(c.Detail, "netconf.json") && (slices.Contains(changing, c.Name) || strings.HasPrefix(c.Name, "open"))
}

// matters reports whether a file may be other than it should be if a call fails. An owner may be lost, for want of CAP_CHOWN.
func (n *hostNode) matters(c faults.Call) bool {
	return n.changes(c) && !strings.Contains(c.Detail, n.root+"/state") && !strings.Contains(c.Name, "chown")
}

// load loads the first network as the runtimes do. Its main plugin must be the network's own.
func (n *hostNode) load() error {
	files, err := libcni.ConfFiles(filepath.Join(n.seen, "net.d"), []string{".conf", ".conflist", ".json"})
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("there is no network")
	}
	slices.Sort(files)
	var list *libcni.NetworkConfigList
	if filepath.Ext(files[0]) == ".conflist" {
		list, err = libcni.ConfListFromFile(files[0])
	} else {
		var conf *libcni.NetworkConfig
		if conf, err = libcni.ConfFromFile(files[0]); err == nil { //nolint:staticcheck // deprecated, but what the runtimes call
			list, err = libcni.ConfListFromConf(conf) //nolint:staticcheck
		}
	}
	if err != nil {
		return fmt.Errorf("the runtime can't load its network: %w", err)
	}
	if main := list.Plugins[0].Network.Type; main != "bridge" && !strings.HasPrefix(main, "multus") {
		return fmt.Errorf("the main plugin is %s", main)
	}
	_, err = libcni.LoadNetworkConf(filepath.Dir(files[0]), list.Name)
	return err
}

func newAgents(t *testing.T) agents {
	return agents{nettest.StartMounts(t, serviceAccount)}
}
