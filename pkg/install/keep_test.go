package install

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// counts does not count.
type counts struct{}

func (counts) CountInstall(string) {}
func (counts) CountConflict()      {}

// keeper returns a keeper for the world. Its log goes to the writer.
func (w *world) keeper(log io.Writer) *Keeper {
	return NewKeeper(w.Config, NetConf{"type": []byte(`"detour"`), "mesh": []byte(`"osm"`)}, slog.New(slog.NewTextHandler(log, nil)))
}

// keep keeps detour installed until stop is called, which waits for its end.
func (w *world) keep(t *testing.T) (k *Keeper, stop func()) {
	t.Helper()
	k = w.keeper(t.Output())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx, counts{}) }()
	return k, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestWhatIsInstalledStaysUntilItIsUninstalled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]string{"10-net.conflist": bridge})
	k, stop := w.keep(t)
	eventually(t, "installed", func() bool { ok, _ := k.Installed(); return ok })
	k.Found("v1alpha1")
	eventually(t, "the version is in the entry", func() bool {
		text, err := os.ReadFile(w.path("10-net.conflist"))
		return err == nil && strings.Contains(string(text), `"versions":["v1alpha1"]`)
	})
	stop()
	for path, want := range map[string]string{
		w.path("10-net.conflist"): `"type":"detour"`, w.BinDir + "/detour": "the plugin", w.path(TokenName): "token 1", w.path(KubeconfigName): "https://10.0.0.1:443",
	} {
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("after the keeper's end %s is %q, %v, want %q in it", path, text, err, want)
		}
	}
	w.uninstall()
	w.wantFiles(map[string]string{"10-net.conflist": bridge})
}

func TestReadinessKnowsWhatIsMissing(t *testing.T) {
	t.Parallel()
	if ok, why := new(Keeper).Installed(); ok || why != "the first look at the host is not done yet" {
		t.Errorf("at first: %t, %q", ok, why)
	}
	w := newWorld(t, nil)
	k, stop := w.keep(t)
	defer stop()
	eventually(t, "the network is missing", func() bool {
		ok, why := k.Installed()
		return !ok && strings.Contains(why, "no valid network configuration")
	})
	put(t, w.path("10-net.conflist"), bridge)
	eventually(t, "installed", func() bool { ok, _ := k.Installed(); return ok })
}

// A program that changes the list five times a second is in the log once a minute, with how often it was; other news at once.
func TestAFightIsInTheLogOnceAMinute(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	k := newWorld(t, nil).keeper(&log)
	conflict := &ConflictError{Part: PartConflist, File: "x.conflist"}
	synctest.Test(t, func(*testing.T) {
		for n := 1; n <= 5*150; n++ {
			k.take(State{Result: Result{Changes: []Change{
				{Part: PartConflist, File: "x.conflist", Reason: "entry missing or different", Rival: n},
			}}}, counts{})
			k.take(State{Err: conflict}, counts{})
			time.Sleep(200 * time.Millisecond)
		}
		k.take(State{Err: ErrNoNetwork}, counts{})
	})
	for text, want := range map[string]int{
		"event=install-conflict": 3, "times=1\n": 1, "times=301\n": 1, "times=601\n": 1,
		conflict.Error(): 3, ErrNoNetwork.Error(): 1, "event=install-failed": 4, "level": 7,
	} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("%q is there %d times, want %d times", text, got, want)
		}
	}
	if ok, why := k.Installed(); ok || why != ErrNoNetwork.Error() {
		t.Errorf("readiness: %t, %q", ok, why)
	}
}

func TestOfTwoVersionsTheNewerCounts(t *testing.T) {
	t.Parallel()
	k := newWorld(t, nil).keeper(t.Output())
	k.Found("v1")
	k.Found("v2")
	if got := <-k.versions; got != "v2" || len(k.versions) != 0 {
		t.Errorf("got %s", got)
	}
}
