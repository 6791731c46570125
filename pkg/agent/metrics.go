package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/build/metric"
)

// metrics are the agent's, in a registry of their own. No label has values that a pod or a user can choose.
type metrics struct {
	registry     *prometheus.Registry
	adds         *prometheus.CounterVec
	stages       *prometheus.HistogramVec
	lookups      *prometheus.CounterVec
	malformed    prometheus.Counter
	installs     *prometheus.CounterVec
	conflicts    prometheus.Counter
	unprogrammed prometheus.Gauge
	marked       *prometheus.GaugeVec // has no labels, and is absent until it is first set
	repairs      *prometheus.CounterVec
	events       *prometheus.CounterVec
}

// stageBuckets are seconds: an ADD takes about 10 ms, and 10 s at most.
var stageBuckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5}

// observed is what metrics are gathered from at each scrape.
type observed struct {
	ready       func() bool
	age         func() time.Duration // of the cache
	tokenExpiry func() time.Time
}

func newMetrics(now observed) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "detour", Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "detour", Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry:  metric.NewRegistry(),
		adds:      counters("adds_total", "CNI ADDs that the plugin reported, by outcome and by class of the reason.", "outcome", "reason_class"),
		lookups:   counters("lookups_total", "The plugin's lookups, by where the answer came from: cache, live, old (a cache that could not be renewed) or none (failed); and those after which the plugin asked the API server itself (fallback).", "from"),
		malformed: counter("malformed_requests_total", "Invalid requests at the socket."),
		installs:  counters("installs_total", "Writes of what is installed on the host.", "what"),
		conflicts: counter("install_conflicts_total", "Changes by other programs to what is installed."),
		repairs:   counters("repairs_total", "Attempts to repair an unprogrammed pod, by mode and result.", "mode", "result"),
		events:    counters("events_total", "Kubernetes Events: written, repeated (too soon after the last), dropped (too many) or failed.", "result"),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "detour", Name: "add_stage_seconds", Buckets: stageBuckets,
			Help: "Time of each stage of a CNI ADD as the plugin reported it.",
		}, []string{"stage"}),
		unprogrammed: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "detour", Name: "pods_unprogrammed",
			Help: "Meshed pods of this node that run without redirection, at the last sweep.",
		}),
	}
	m.marked = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "detour", Name: "node_marked",
		Help: "Whether the agent's last write or look left the label detour.io/ready on its node, with --mark-node.",
	}, nil)
	gauge := func(name, help string, value func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "detour", Name: name, Help: help}, value)
	}
	m.registry.MustRegister(m.adds, m.stages, m.lookups, m.malformed, m.installs, m.conflicts, m.unprogrammed, m.marked, m.repairs, m.events,
		gauge("ready", "1 if the node can serve an ADD now, as /readyz says, else 0.", func() float64 {
			if now.ready() {
				return 1
			}
			return 0
		}),
		gauge("cache_age_seconds", "Time since the API server last said anything about this node's pods; it does so about every minute.",
			func() float64 { return now.age().Seconds() }),
		gauge("token_expiry_timestamp_seconds", "Unix time at which the token on the host expires; 0 if there is none.",
			func() float64 { return max(0, float64(now.tokenExpiry().Unix())) }))
	m.begin()
	return m
}

// begin makes the series that alerts watch for growth. A series that appears with value 1 has not grown.
func (m *metrics) begin() {
	m.adds.WithLabelValues(string(attachment.Programmed), "none")
	m.adds.WithLabelValues(string(attachment.Skipped), "none")
	for _, class := range append(slices.Collect(maps.Values(classes)), "other") {
		m.adds.WithLabelValues(string(attachment.Failed), class)
		m.adds.WithLabelValues(string(attachment.Allowed), class)
	}
	for _, from := range []string{"cache", "live", "failed", "fallback"} {
		m.lookups.WithLabelValues(from)
	}
}
