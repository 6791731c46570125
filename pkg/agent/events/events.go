// Package events writes Kubernetes Events about pods. client-go's recorder does not fit: its types add 4 MB to the binary and 1.5 MB
// to the agent's memory, it has no limit for all pods together, and while the API server is away it holds one Event up to two
// minutes.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/detour-cni/detour/pkg/pod"
)

// event is an Event to be written.
type event struct {
	pod     pod.ID
	reason  string
	message string
}

const (
	queueLength = 256             // events that wait; more are dropped
	window      = 5 * time.Minute // within which a repetition is not written
	burst       = 20              // events at once, and then one a second
	memory      = 1024            // events whose time of writing is known
	uidLength   = 64              // bytes of a UID, which has 36
	maxMessage  = 1024            // bytes, which the API server takes
)

// API is the part of the API server that a Recorder needs.
type API interface {
	Create(ctx context.Context, path string, object any) error
	Patch(ctx context.Context, path string, kind types.PatchType, patch any) error
}

// Recorder writes Events from one goroutine. The same Event of a pod is one object with a count.
type Recorder struct {
	api    API
	node   string
	log    *slog.Logger
	result *prometheus.CounterVec
	queue  chan event
	limit  flowcontrol.RateLimiter
	Window time.Duration // within which a repetition is counted, not written; it must not change once Run runs
	known  map[key]*written
}

type key struct {
	pod    pod.ID
	reason string
}

// written is an Event object that the recorder has made.
type written struct {
	name  string
	count int // also of repetitions that were not written
	last  time.Time
}

// NewRecorder returns a recorder that counts in result what became of each event.
func NewRecorder(api API, node string, log *slog.Logger, result *prometheus.CounterVec) *Recorder {
	return &Recorder{
		api: api, node: node, log: log, result: result,
		queue:  make(chan event, queueLength),
		limit:  flowcontrol.NewTokenBucketRateLimiter(1, burst),
		Window: window,
		known:  map[key]*written{},
	}
}

// The reasons of the agent's Events.
const (
	refused      = "DetourRefused"
	unprogrammed = "DetourUnprogrammed"
	repaired     = "DetourRepaired"
)

// Refused says that ADD failed: the pod or the mesh's configuration has to change.
func (r *Recorder) Refused(p pod.ID, message string) { r.record(p, refused, message) }

// Unprogrammed says that the pod runs without redirection.
func (r *Recorder) Unprogrammed(p pod.ID, message string) { r.record(p, unprogrammed, message) }

// Repaired says that the agent has programmed the pod in place.
func (r *Recorder) Repaired(p pod.ID, message string) { r.record(p, repaired, message) }

// record never blocks: it drops and counts an event too many. It cuts long texts, of which many may wait.
func (r *Recorder) record(about pod.ID, reason, message string) {
	about.UID = clip(about.UID, uidLength)
	select {
	case r.queue <- event{about, reason, clip(message, maxMessage)}:
	default:
		r.result.WithLabelValues("dropped").Inc()
	}
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.result.WithLabelValues(r.write(ctx, e)).Inc()
		}
	}
}

// write makes the Event, or counts it on the existing one.
func (r *Recorder) write(ctx context.Context, e event) string {
	k := key{e.pod, e.reason}
	before, again := r.known[k]
	if again {
		before.count++
		if time.Since(before.last) < r.Window {
			return "repeated"
		}
	}
	if err := r.limit.Wait(ctx); err != nil {
		return "dropped"
	}
	var err error
	if again {
		if err = r.repeat(ctx, e, before); err == nil {
			before.last = time.Now()
			return "written"
		}
		delete(r.known, k)
	}
	if !again || apierrors.IsNotFound(err) { // the API server forgets Events after an hour
		var made *written
		if made, err = r.create(ctx, e); err == nil {
			r.remember(k, made)
			return "written"
		}
	}
	if ctx.Err() == nil {
		r.log.Warn("Event not written", "event", "event-failed", "pod", e.pod.String(), "podUID", e.pod.UID, "reason", e.reason, "error", err.Error())
	}
	return "failed"
}

func (r *Recorder) remember(k key, w *written) {
	if len(r.known) >= memory {
		for k, old := range r.known {
			if time.Since(old.last) >= r.Window {
				delete(r.known, k)
			}
		}
	}
	if len(r.known) >= memory {
		clear(r.known)
	}
	r.known[k] = w
}

func path(namespace string) string { return "/api/v1/namespaces/" + namespace + "/events" }

func (r *Recorder) create(ctx context.Context, e event) (*written, error) {
	now := time.Now()
	const longest = 253 - len(".0123456789abcdef")
	name := fmt.Sprintf("%s.%x", strings.TrimRight(e.pod.Name[:min(len(e.pod.Name), longest)], "-."), now.UnixNano())
	kind := "Warning"
	if e.reason == repaired {
		kind = "Normal"
	}
	stamp := now.UTC().Format(time.RFC3339)
	return &written{name: name, count: 1, last: now}, r.api.Create(ctx, path(e.pod.Namespace), map[string]any{
		"apiVersion":     "v1",
		"kind":           "Event",
		"metadata":       map[string]any{"namespace": e.pod.Namespace, "name": name},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": e.pod.Namespace, "name": e.pod.Name, "uid": e.pod.UID},
		"type":           kind,
		"reason":         e.reason,
		"message":        e.message,
		"count":          1,
		"firstTimestamp": stamp,
		"lastTimestamp":  stamp,
		"source":         map[string]any{"component": "detour-agent", "host": r.node},
	})
}

func (r *Recorder) repeat(ctx context.Context, e event, before *written) error {
	return r.api.Patch(ctx, path(e.pod.Namespace)+"/"+before.name, types.MergePatchType, map[string]any{
		"count":         before.count,
		"message":       e.message,
		"lastTimestamp": time.Now().UTC().Format(time.RFC3339),
	})
}

// clip makes a text valid UTF-8 of at most so many bytes. The result shares no memory with a text that is longer.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most-len("...")]
		return strings.ToValidUTF8(s, "") + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
