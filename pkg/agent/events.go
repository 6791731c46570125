package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/util/flowcontrol"
)

// The reasons of the agent's Events.
const (
	reasonRefused      = "DetourRefused"      // the ADD failed: the pod or the mesh's configuration has to be changed
	reasonUnmeshed     = "DetourUnmeshed"     // as above, but the net conf lets the pod start unmeshed
	reasonUnprogrammed = "DetourUnprogrammed" // it runs without redirection
	reasonRepaired     = "DetourRepaired"     // it was programmed in place
)

// event is what is to be said of a pod.
type event struct {
	namespace, pod, uid string
	warning             bool
	reason, message     string
}

const (
	eventQueue  = 256             // events that wait; more are dropped
	eventWindow = 5 * time.Minute // within which a repetition is not written
	eventBurst  = 20              // events at once, and then one a second
	eventMemory = 1024            // events of which is known when they were written
	eventLength = 1024            // bytes of a message, which the API server takes
	uidLength   = 64              // bytes of a UID, which has 36
)

// recorder writes Events, from one goroutine. The same event of a pod is one object with a count.
type recorder struct {
	client *client
	node   string
	log    *slog.Logger
	result *prometheus.CounterVec
	queue  chan event
	limit  flowcontrol.RateLimiter
	window time.Duration
	known  map[eventKey]*written
}

type eventKey struct{ namespace, pod, uid, reason string }

// written is an Event object that the recorder has made.
type written struct {
	name  string
	count int // also of repetitions that were not written
	last  time.Time
}

func newRecorder(c *client, node string, log *slog.Logger, result *prometheus.CounterVec) *recorder {
	return &recorder{
		client: c, node: node, log: log, result: result,
		queue:  make(chan event, eventQueue),
		limit:  flowcontrol.NewTokenBucketRateLimiter(1, eventBurst),
		window: eventWindow,
		known:  map[eventKey]*written{},
	}
}

// record never blocks; an event too many is dropped, and counted. What waits is short: a reason may be megabytes.
func (r *recorder) record(e event) {
	e.uid, e.message = clip(e.uid, uidLength), clip(e.message, eventLength)
	select {
	case r.queue <- e:
	default:
		r.result.WithLabelValues("dropped").Inc()
	}
}

// run writes events until ctx ends.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.result.WithLabelValues(r.write(ctx, e)).Inc()
		}
	}
}

// write makes the Event, or counts it on the one there is.
func (r *recorder) write(ctx context.Context, e event) string {
	key := eventKey{e.namespace, e.pod, e.uid, e.reason}
	before, again := r.known[key]
	if again {
		before.count++
		if time.Since(before.last) < r.window {
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
		delete(r.known, key)
	}
	if !again || gone(err) { // gone: the API server forgets Events after an hour
		var made *written
		if made, err = r.create(ctx, e); err == nil {
			r.remember(key, made)
			return "written"
		}
	}
	if ctx.Err() == nil {
		r.log.Warn("an Event could not be written", "pod", e.namespace+"/"+e.pod, "reason", e.reason, "error", err.Error())
	}
	return "failed"
}

func (r *recorder) remember(key eventKey, w *written) {
	if len(r.known) >= eventMemory {
		for k, old := range r.known {
			if time.Since(old.last) >= r.window {
				delete(r.known, k)
			}
		}
	}
	if len(r.known) >= eventMemory {
		clear(r.known)
	}
	r.known[key] = w
}

func eventsPath(namespace string) string { return "/api/v1/namespaces/" + namespace + "/events" }

func (r *recorder) create(ctx context.Context, e event) (*written, error) {
	now := time.Now()
	const longest = 253 - len(".0123456789abcdef")
	name := fmt.Sprintf("%s.%x", strings.TrimRight(e.pod[:min(len(e.pod), longest)], "-."), now.UnixNano())
	kind := "Normal"
	if e.warning {
		kind = "Warning"
	}
	stamp := now.UTC().Format(time.RFC3339)
	return &written{name: name, count: 1, last: now}, r.client.send(ctx, "POST", eventsPath(e.namespace), plainJSON, map[string]any{
		"apiVersion":     "v1",
		"kind":           "Event",
		"metadata":       map[string]any{"namespace": e.namespace, "name": name},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": e.namespace, "name": e.pod, "uid": e.uid},
		"type":           kind,
		"reason":         e.reason,
		"message":        e.message,
		"count":          1,
		"firstTimestamp": stamp,
		"lastTimestamp":  stamp,
		"source":         map[string]any{"component": "detour-agent", "host": r.node},
	})
}

func (r *recorder) repeat(ctx context.Context, e event, before *written) error {
	return r.client.send(ctx, "PATCH", eventsPath(e.namespace)+"/"+before.name, mergePatch, map[string]any{
		"count":         before.count,
		"message":       e.message,
		"lastTimestamp": time.Now().UTC().Format(time.RFC3339),
	})
}

// clip makes a text valid and at most so long; what is left of a long one shares no memory with it.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most-len("...")]
		return strings.ToValidUTF8(s, "") + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
