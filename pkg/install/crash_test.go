package install

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crashNetworks are the ways in which a network may be configured, and the runtime's network of each.
var crashNetworks = map[string]struct {
	files   map[string]string
	network string
}{
	"conflist": {map[string]string{"10-x.conflist": bridge}, "net: bridge portmap"},
	"older entry": {map[string]string{"10-x.conflist": strings.Replace(bridge, "}]", `}, {"type": "detour"}, {"type": "detour"}]`, 1)},
		"net: bridge portmap detour detour"},
	"conf": {map[string]string{"10-x.conf": single}, "net: bridge"},
	"json": {map[string]string{"10-x.json": single}, "net: bridge"},
}

const (
	crashRoot = "DETOUR_INSTALL_ROOT"
	crashStep = "DETOUR_INSTALL_STEP"
	crashVerb = "DETOUR_INSTALL_VERB"
)

// TestKilled is the process that TestKilledAtEveryStep kills: it kills itself before the step.
func TestKilled(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		t.Skip("only for TestKilledAtEveryStep")
	}
	i, err := New(at(root))
	if err != nil {
		t.Fatal(err)
	}
	left, err := strconv.Atoi(os.Getenv(crashStep))
	if err != nil {
		t.Fatal(err)
	}
	i.files.before = func(string, string) error {
		if left == 0 {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		left--
		return nil
	}
	if err := crashDo(i, os.Getenv(crashVerb)); err != nil {
		t.Fatal(err)
	}
}

func crashDo(i *Installer, verb string) error {
	var err error
	if verb == "uninstall" {
		_, err = i.Uninstall()
	} else {
		_, err = i.Reconcile()
	}
	return err
}

// runtimeWorks says why the runtime could not start a pod on this network with what is installed now.
func (w *world) runtimeWorks(network string) error {
	got, err := runtimeNetwork(w.ConfDir)
	if err != nil {
		return err
	}
	if got != network && got != strings.ReplaceAll(network, " detour", "")+" detour" && got != strings.ReplaceAll(network, " detour", "") {
		return fmt.Errorf("the runtime loads %s, want %s", got, network)
	}
	if got == network || !strings.HasSuffix(got, "detour") {
		return nil // not ours, or somebody else's fault
	}
	files := contents(w.tb, w.ConfDir)
	if contents(w.tb, w.BinDir)["detour"] != "\x7fELF the plugin" || files[TokenName] != "token 1" || files[KubeconfigName] == "" {
		return errors.New("the list has the entry, but not all is there that it needs")
	}
	return nil
}

// crash makes verb fail before each step in turn. fail returns false when the verb had no such step any more.
func crash(t *testing.T, fail func(w *world, verb string, step int) bool) {
	for name, c := range crashNetworks {
		clean := strings.ReplaceAll(c.network, " detour", "")
		t.Run(name+"/install", func(t *testing.T) {
			for step := 0; ; step++ {
				w := newWorld(t, c.files)
				failed := fail(w, "install", step)
				if err := w.runtimeWorks(c.network); err != nil {
					t.Errorf("after a failure before step %d: %v", step, err)
				}
				w.reconcile()
				if got := w.network(); got != clean+" detour" {
					t.Errorf("after a failure before step %d and another run the runtime loads %s", step, got)
				}
				w.uninstall()
				if got := w.network(); got != clean || len(w.files()) != 1 {
					t.Errorf("after a failure before step %d, another run and uninstall, there is %s in %v", step, got, w.files())
				}
				if !failed {
					t.Logf("%d steps", step)
					break
				}
			}
		})
		t.Run(name+"/uninstall", func(t *testing.T) {
			for step := 0; ; step++ {
				w := newWorld(t, c.files)
				w.reconcile()
				failed := fail(w, "uninstall", step)
				if err := w.runtimeWorks(clean); err != nil {
					t.Errorf("after a failure before step %d: %v", step, err)
				}
				if step%2 == 0 { // installed again in between
					w.reconcile()
					if got := w.network(); got != clean+" detour" {
						t.Errorf("after a failure before step %d and another run the runtime loads %s", step, got)
					}
				}
				w.uninstall()
				if got := w.network(); got != clean || len(contents(t, w.ConfDir)) != 1 || len(contents(t, w.BinDir)) != 0 {
					t.Errorf("after a failure before step %d and another run, there is %s in %v", step, got, w.files())
				}
				if !failed {
					t.Logf("%d steps", step)
					break
				}
			}
		})
	}
}

func TestKilledAtEveryStep(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	crash(t, func(w *world, verb string, step int) bool {
		c := exec.Command(self, "-test.run", "^TestKilled$")
		c.Env = append(os.Environ(), crashRoot+"="+filepath.Dir(w.BinDir), crashVerb+"="+verb, crashStep+"="+strconv.Itoa(step))
		out, err := c.CombinedOutput()
		if err == nil {
			return false
		}
		if status, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			w.tb.Fatalf("%v: %s", err, out)
		}
		return true
	})
}

func TestErrorAtEveryStep(t *testing.T) {
	full := errors.New("no space left on device")
	crash(t, func(w *world, verb string, step int) bool {
		i := w.installer()
		var at string
		left := step
		i.files.before = func(step, path string) error {
			left--
			if left == -1 {
				at = step + " " + path
				return full
			}
			return nil
		}
		err := crashDo(i, verb)
		if at == "" {
			if err != nil {
				w.tb.Fatal(err)
			}
			return false
		}
		if !errors.Is(err, full) {
			w.tb.Errorf("an error before %s is lost: %v", at, err)
		}
		for name := range w.files() {
			if isTemp(name) {
				w.tb.Errorf("an error before %s leaves %s", at, name)
			}
		}
		return true
	})
}

// turn is what somebody else does when the installer is about to take a step.
type turn struct {
	step string
	do   func()
}

// rivalAt makes somebody else take turns, one after the other, at the steps that change a file.
func rivalAt(i *Installer, name string, turns ...turn) {
	i.files.before = func(step, path string) error {
		if len(turns) > 0 && turns[0].step == step && filepath.Base(path) == name {
			do := turns[0].do
			turns = turns[1:]
			do()
		}
		return nil
	}
}

// Whatever somebody else does to the list at whatever moment, it is not lost, and the next round puts the entry into it.
func TestSomebodyElseWritesAtTheSameTime(t *testing.T) {
	const name = "10-x.conflist"
	change := strings.Replace(bridge, `"bridge"`, `"ptp"`, 1)
	for _, c := range []struct {
		name  string
		turns func(w *world) []turn
		want  string
	}{
		{"before the look", func(w *world) []turn { return []turn{{"sync", w.writes(name, change)}} }, change},
		{"in place after the look", func(w *world) []turn { return []turn{{"swap", w.writes(name, change)}} }, change},
		{"anew after the look", func(w *world) []turn { return []turn{{"swap", w.renames(change)}} }, change},
		{"twice, the second time after the swap", func(w *world) []turn {
			return []turn{{"swap", w.renames(withMTU(1))}, {"look", w.renames(change)}}
		}, change},
		{"after each swap", func(w *world) []turn {
			return []turn{{"swap", w.renames(withMTU(1))}, {"look", w.renames(withMTU(2))}, {"look", w.renames(change)}}
		}, change},
		{"into a file that was opened before", func(w *world) []turn { return []turn{{"swap", w.writesSlowly(name, change)}} }, change},
		{"by removing it", func(w *world) []turn { return []turn{{"swap", func() { os.Remove(w.path(name)) }}} }, ""},
		{"by removing it after the swap", func(w *world) []turn {
			return []turn{{"swap", w.renames(change)}, {"look", func() { os.Remove(w.path(name)) }}}
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string]string{name: bridge})
			i := w.installer()
			rivalAt(i, name, c.turns(w)...)
			if _, err := i.Reconcile(); !errors.Is(err, errChanged) {
				t.Errorf("installing, got %v", err)
			}
			if c.want == "" {
				w.wantFiles(nil)
				return
			}
			w.wantFiles(map[string]string{name: c.want})
			w.reconcile()
			rivalAt(i, name, c.turns(w)...)
			if _, err := i.Uninstall(); !errors.Is(err, errChanged) {
				t.Errorf("uninstalling, got %v", err)
			}
			w.wantFiles(map[string]string{name: c.want})
		})
	}
}

// Where files can't change places, a list is replaced all the same.
func TestAFilesystemThatCannotExchange(t *testing.T) {
	for _, cause := range []error{syscall.EINVAL, syscall.ENOSYS} {
		w := newWorld(t, map[string]string{"10-x.conflist": bridge})
		i := w.installer()
		rivalAt(i, "10-x.conflist", turn{"sync", w.writes("10-x.conflist", withMTU(1))})
		rival := i.files.before
		i.files.before = func(step, path string) error {
			if step == "swap" {
				return cause
			}
			return rival(step, path)
		}
		if _, err := i.Reconcile(); !errors.Is(err, errChanged) {
			t.Errorf("with a change in between: %v", err)
		}
		w.wantFiles(map[string]string{"10-x.conflist": withMTU(1)})
		if _, err := i.Reconcile(); err != nil {
			t.Fatal(err)
		}
		if got := w.network(); got != "net: bridge portmap detour" || len(w.files()) != 1 {
			t.Errorf("the runtime loads %s of %v", got, w.files())
		}
	}
}

// A list of which only half is there counts once it is whole; the next one in the folder is none of ours meanwhile.
func TestAListThatIsBeingWrittenIsWaitedFor(t *testing.T) {
	w := newWorld(t, map[string]string{"20-y.conflist": bridge})
	half, err := os.Create(w.path("10-x.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.WriteString(bridge[:20]); err != nil {
		t.Fatal(err)
	}
	_, err = w.installer().Reconcile()
	if err == nil {
		t.Fatal("it works")
	}
	mustContain(t, err.Error(), "10-x.conflist", "another program is writing it")
	w.wantFiles(map[string]string{"10-x.conflist": bridge[:20], "20-y.conflist": bridge})
	half.Close()
	if r := w.reconcile(); r.Conflist != w.path("20-y.conflist") {
		t.Errorf("a file that stays invalid is not passed over: %+v", r)
	}
}

// writes overwrites a file, renames replaces the list.
func (w *world) writes(name, text string) func() { return func() { put(w.tb, w.path(name), text) } }

// writesSlowly opens the file at once and writes to it after a while.
func (w *world) writesSlowly(name, text string) func() {
	return func() {
		file, err := os.OpenFile(w.path(name), os.O_WRONLY, 0)
		if err != nil {
			w.tb.Error(err)
			return
		}
		time.AfterFunc(20*time.Millisecond, func() {
			_, err := file.WriteString(text)
			if err := errors.Join(err, file.Truncate(int64(len(text))), file.Close()); err != nil {
				w.tb.Error(err)
			}
		})
	}
}

func (w *world) renames(text string) func() {
	return func() {
		put(w.tb, w.path("owner.new"), text)
		w.rename("owner.new", "10-x.conflist")
	}
}
