package install

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestWait has a clock that stands still but while everybody waits.
func TestWait(t *testing.T) {
	const pause = time.Minute
	write := func(name string) fsnotify.Event { return fsnotify.Event{Name: name, Op: fsnotify.Write} }
	for _, c := range []struct {
		name string
		// send is done by somebody else meanwhile
		send func(w *fsnotify.Watcher)
		want time.Duration
	}{
		{"no news", func(*fsnotify.Watcher) {}, pause},
		{"one change", func(w *fsnotify.Watcher) { w.Events <- write("/net.d/10-x.conflist") }, 20 * time.Millisecond},
		{"our binary", func(w *fsnotify.Watcher) { w.Events <- write("/bin/detour") }, 20 * time.Millisecond},
		{"another binary", func(w *fsnotify.Watcher) { w.Events <- write("/bin/bridge") }, pause},
		{"our temporary files", func(w *fsnotify.Watcher) {
			w.Events <- write("/net.d/.detour-1.tmp")
			w.Events <- write("/bin/.detour-1.tmp")
		}, pause},
		{"lost events", func(w *fsnotify.Watcher) { w.Errors <- errors.New("queue overflow") }, 20 * time.Millisecond},
		{"a change in two steps", func(w *fsnotify.Watcher) {
			w.Events <- write("/net.d/10-x.conflist")
			time.Sleep(15 * time.Millisecond)
			w.Events <- write("/net.d/10-x.conflist")
		}, 35 * time.Millisecond},
		{"changes without end", func(w *fsnotify.Watcher) {
			for range 20 {
				w.Events <- write("/net.d/10-x.conflist")
				time.Sleep(15 * time.Millisecond)
			}
		}, 200 * time.Millisecond},
		{"a change just before the end", func(w *fsnotify.Watcher) {
			time.Sleep(pause - time.Millisecond)
			w.Events <- write("/net.d/10-x.conflist")
		}, pause},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				watcher := &fsnotify.Watcher{Events: make(chan fsnotify.Event, 100), Errors: make(chan error, 1)}
				w := &watch{pace: defaultPace, binary: "/bin/detour", watcher: watcher}
				start := time.Now()
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					c.send(watcher)
				}()
				w.wait(t.Context(), pause)
				if got := time.Since(start); got != c.want {
					t.Errorf("waited %s, want %s", got, c.want)
				}
				<-sent
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		(&watch{pace: defaultPace}).wait(ctx, pause)
		if got := time.Since(start); got != time.Second {
			t.Errorf("after the end it waited %s", got)
		}
	})
}
