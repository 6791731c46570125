package install

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// State is what a round of Run found and did.
type State struct {
	Result
	// Err is why detour is not installed as it should be: ErrNoNetwork, a ConflictError or another error. It is nil if it is.
	Err error
	// WatchErr is why Run has no watch and looks every second.
	WatchErr error
}

// Installed reports whether the next pod gets what the configuration says.
func (s State) Installed() bool { return s.Err == nil }

// Run reconciles after every change in the folders, and every now and then, until the context ends; it leaves everything in place.
// It restores another program's change at once, and within a second however often that happens. It calls onState after each round,
// from this goroutine.
func (i *Installer) Run(ctx context.Context, onState func(State)) {
	rivals := newRivals(i.pace, time.Now)
	w := newWatch(i)
	defer w.close()
	for ctx.Err() == nil {
		watchErr := w.renew()
		result, err := i.reconcile(rivals)
		onState(State{result, err, watchErr})
		pause := i.pace.period
		if err != nil || watchErr != nil {
			pause = i.pace.retry
		}
		if next := rivals.next(); !next.IsZero() {
			pause = min(pause, time.Until(next))
		}
		w.wait(ctx, pause)
	}
}

// watch waits for news about what is installed.
type watch struct {
	pace    pace
	dirs    []string
	binary  string
	watcher *fsnotify.Watcher
}

func newWatch(i *Installer) *watch {
	w := &watch{pace: i.pace, dirs: []string{i.conf.ConfDir, i.conf.BinDir}, binary: i.binaryPath()}
	if k := i.conf.Kubeconfig; k != nil {
		// the kubelet replaces a link in its folder
		w.dirs = append(w.dirs, filepath.Dir(k.TokenFile))
		if k.CAFile != "" {
			w.dirs = append(w.dirs, filepath.Dir(k.CAFile))
		}
	}
	return w
}

func (w *watch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close()
		w.watcher = nil
	}
}

// renew watches the folders, and again those that were replaced.
func (w *watch) renew() error {
	var err error
	if w.watcher == nil {
		if w.watcher, err = fsnotify.NewWatcher(); err != nil {
			w.watcher = nil
			return err
		}
	}
	for _, dir := range w.dirs {
		err = errors.Join(err, w.watcher.Add(dir))
	}
	return err
}

// wait returns after the pause, soon after news, or when the context ends.
func (w *watch) wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(max(pause, 0))
	defer timer.Stop()
	var events chan fsnotify.Event
	var lost chan error
	if w.watcher != nil {
		events, lost = w.watcher.Events, w.watcher.Errors
	}
	end := time.Now().Add(pause)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case e := <-events:
			if !w.isNews(e) {
				continue
			}
		case <-lost: //nolint:errcheck // events were lost, so there may be news
		}
		now := time.Now()
		if latest := now.Add(w.pace.patience); latest.Before(end) {
			end = latest
		}
		timer.Reset(min(w.pace.settle, end.Sub(now)))
	}
}

// isNews tells changes that matter from those of other plugins in their folder, and of our temporary files.
func (w *watch) isNews(e fsnotify.Event) bool {
	if isTemp(filepath.Base(e.Name)) {
		return false
	}
	return e.Name == w.binary || filepath.Dir(e.Name) != filepath.Dir(w.binary)
}
