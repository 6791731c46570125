package install

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// running is a Run whose states are collected.
type running struct {
	tb     testing.TB
	states chan State
	stop   func()
	// answers are when somebody else's change was put right. It is complete after stop.
	answers []time.Time
}

func (w *world) run(p pace) *running {
	w.tb.Helper()
	i := w.installer()
	i.pace = p
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{tb: w.tb, states: make(chan State, 10000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		i.Run(ctx, func(s State) {
			if slices.ContainsFunc(s.Changes, func(c Change) bool { return c.Rival > 0 }) {
				r.answers = append(r.answers, time.Now())
			}
			r.states <- s
		})
	}()
	r.stop = func() { cancel(); <-done }
	w.tb.Cleanup(r.stop)
	return r
}

// until returns the first state, from now on, of which ok is true.
func (r *running) until(what string, ok func(State) bool) State {
	r.tb.Helper()
	var last State
	timeout := time.After(5 * time.Minute) // a busy disk may take very long
	for {
		select {
		case last = <-r.states:
			if ok(last) {
				return last
			}
		case <-timeout:
			r.tb.Fatalf("%s: it has not come to that, the last state is %+v", what, last)
		}
	}
}

func changed(part Part) func(State) bool {
	return func(s State) bool {
		for _, c := range s.Changes {
			if c.Part == part && s.Installed() {
				return true
			}
		}
		return false
	}
}

func installed(s State) bool { return s.Installed() }

// patient is a pace at which nothing is found but by watching.
func patient() pace {
	p := defaultPace
	p.period, p.retry = time.Hour, time.Hour
	return p
}

func TestRunAnswersWhatItSees(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	plugin := filepath.Join(w.BinDir, "detour")
	pod := filepath.Dir(w.Kubeconfig.TokenFile)
	r := w.run(patient())
	r.until("installed", installed)
	for _, c := range []struct {
		name  string
		part  Part
		rival bool
		spoil func() error
	}{
		{"conflist rewritten", PartConflist, true, func() error { return os.WriteFile(w.path("10-x.conflist"), []byte(bridge), 0o644) }},
		{"binary deleted", PartBinary, true, func() error { return os.Remove(plugin) }},
		{"binary overwritten", PartBinary, true, func() error { return os.WriteFile(plugin, []byte("x"), 0o755) }},
		{"kubeconfig deleted", PartKubeconfig, true, func() error { return os.Remove(w.path(KubeconfigName)) }},
		{"another network moved to the fore", PartConflist, true, func() error {
			return errors.Join(os.WriteFile(w.path("tmp"), []byte(bridge), 0o644), os.Rename(w.path("tmp"), w.path("05-y.conflist")))
		}},
		{"network gone and back", PartConflist, true, func() error {
			return errors.Join(os.Remove(w.path("10-x.conflist")), os.Remove(w.path("05-y.conflist")),
				os.WriteFile(w.path("10-x.conflist"), []byte(bridge), 0o644))
		}},
		{"token rotated as the kubelet does", PartToken, false, func() error {
			return errors.Join(os.WriteFile(pod+"/token.new", []byte("token 2"), 0o600), os.Rename(pod+"/token.new", pod+"/token"))
		}},
	} {
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		s := r.until(c.name, changed(c.part))
		if s.Changes[0].Rival > 0 != c.rival {
			t.Errorf("%s: %+v", c.name, s.Changes)
		}
	}
	if got := w.network(); got != "net: bridge portmap detour" {
		t.Errorf("the runtime loads %s", got)
	}
}

func TestRunWaitsForANetwork(t *testing.T) {
	w := newWorld(t, nil)
	r := w.run(patient())
	r.until("no network", func(s State) bool { return errors.Is(s.Err, ErrNoNetwork) })
	put(t, w.path("10-x.conf"), single)
	r.until("installed", changed(PartConflist))
	if got := w.network(); got != "net: bridge detour" {
		t.Errorf("the runtime loads %s", got)
	}
}

func TestRunLeavesEverythingWhenItStops(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	r := w.run(defaultPace)
	r.until("installed", installed)
	then := stamps(t, w.ConfDir, w.BinDir)
	r.stop()
	r = w.run(defaultPace)
	if s := <-r.states; !s.Installed() || len(s.Changes) > 0 {
		t.Errorf("after an upgrade: %+v", s)
	}
	r.stop()
	if now := stamps(t, w.ConfDir, w.BinDir); !maps.Equal(now, then) {
		t.Errorf("files were touched:\n%v\n%v", now, then)
	}
}

// Without a watch the folders are looked at all the same, and watched again as soon as that is possible.
func TestRunWithoutWatch(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	if err := os.Remove(w.BinDir); err != nil {
		t.Fatal(err)
	}
	p := patient()
	p.retry = 20 * time.Millisecond
	r := w.run(p)
	r.until("no watch", func(s State) bool { return s.WatchErr != nil && !s.Installed() })
	if err := os.Mkdir(w.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.until("installed", func(s State) bool { return s.Installed() && s.WatchErr == nil })
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1700000000, 0)
	v := newRivals(defaultPace, func() time.Time { return now })
	if v.answered(PartToken, "1") != 0 {
		t.Error("the first time is somebody else's change")
	}
	if v.answered(PartToken, "2") != 0 {
		t.Error("a rotated token is somebody else's change")
	}
	for n := 1; n <= 1000; n++ {
		if err := v.blocked(PartToken, "f", "2"); err != nil {
			t.Fatalf("answer %d: %v", n, err)
		}
		if got := v.answered(PartToken, "2"); got != n {
			t.Fatalf("answer %d counts as %d", n, got)
		}
		if got := v.next().Sub(now); got != defaultPace.gap {
			t.Errorf("after answer %d it waits %s", n, got)
		}
		now = now.Add(defaultPace.gap - 1)
		if err, ok := errors.AsType[*ConflictError](v.blocked(PartToken, "f", "2")); !ok || *err != (ConflictError{PartToken, "f"}) {
			t.Errorf("answer %d may come early: %v", n+1, err)
		}
		if v.blocked(PartToken, "f", "3") != nil || v.blocked(PartBinary, "b", "") != nil {
			t.Error("others are kept waiting")
		}
		now = now.Add(1)
	}
	if p := defaultPace; p.gap < 200*time.Millisecond || p.patience+p.gap > time.Second/2 {
		t.Errorf("with %+v there are more than five answers a second, or hardly one", p)
	}
	now = now.Add(defaultPace.calm + 1)
	if !v.next().IsZero() {
		t.Errorf("after a while it waits until %s", v.next())
	}
	if got := v.answered(PartToken, "2"); got != 1 {
		t.Errorf("after a while it counts on: %d", got)
	}
}
