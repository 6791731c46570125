package events

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/detour-cni/detour/pkg/pod"
)

// api takes what it is sent, unless it has an error for it.
type api struct {
	created, patched     []map[string]any
	refuse, refusePatch  error
	createdAt, patchedAt string // the last paths
}

func (a *api) Create(_ context.Context, path string, object any) error {
	if a.refuse == nil {
		a.createdAt, a.created = path, append(a.created, object.(map[string]any))
	}
	return a.refuse
}

func (a *api) Patch(_ context.Context, path string, kind types.PatchType, patch any) error {
	if a.refusePatch == nil && kind == types.MergePatchType {
		a.patchedAt, a.patched = path, append(a.patched, patch.(map[string]any))
	}
	return a.refusePatch
}

func newRecorder(t *testing.T, a *api) *Recorder {
	return NewRecorder(a, "n1", slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewCounterVec(prometheus.CounterOpts{}, []string{"result"}))
}

func TestARepeatedEventIsOneObjectWithACount(t *testing.T) {
	t.Parallel()
	a := &api{}
	r := newRecorder(t, a)
	r.Window = 0 // it is over at once
	e := event{pod: pod.ID{Namespace: "shop", Name: "a", UID: "uid-a"}, reason: refused, message: "m"}
	for i := range 3 {
		if got := r.write(t.Context(), e); got != "written" {
			t.Errorf("%d: %s", i, got)
		}
	}
	if len(a.created) != 1 || len(a.patched) != 2 || a.patched[1]["count"] != 3 || !strings.HasPrefix(a.patchedAt, a.createdAt+"/a.") {
		t.Fatalf("%v, %v at %s", a.created, a.patched, a.patchedAt)
	}
	a.refusePatch = apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, "a")
	if got := r.write(t.Context(), e); got != "written" || len(a.created) != 2 {
		t.Errorf("an Event that the API server has forgotten: %s", got)
	}
	a.refuse = apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "a", nil)
	e.pod.UID = "other"
	if got := r.write(t.Context(), e); got != "failed" {
		t.Errorf("a refused Event: %s", got)
	}
}

func TestEventsAreKnownWithinBounds(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, &api{})
	for i := range 5 * memory {
		r.remember(key{pod: pod.ID{UID: fmt.Sprint(i)}}, &written{last: time.Now()})
	}
	if n := len(r.known); n > memory {
		t.Errorf("%d Events are remembered", n)
	}
}

func TestWhatWaitsToBeWrittenIsShort(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, &api{})
	long := strings.Repeat("x", 1<<20)
	r.Refused(pod.ID{Namespace: "shop", Name: "a", UID: long}, long)
	if e := <-r.queue; len(e.message) > maxMessage || len(e.pod.UID) > uidLength {
		t.Errorf("%d bytes of message, %d of UID", len(e.message), len(e.pod.UID))
	}
}
