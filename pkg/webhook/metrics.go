package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/build/metric"
)

// metrics are the webhook's, in a registry of their own. No label has values that a pod or a user can choose.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// secondsBuckets: a review takes a fraction of a millisecond, 2 s at most if it has to ask the API server.
var secondsBuckets = []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 2, 5}

func newMetrics(expiry func() time.Time) *metrics {
	m := &metrics{
		registry: metric.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "detour", Subsystem: "webhook", Name: "requests_total", Help: "Requests of the API server, by path and verdict.",
		}, []string{"path", "verdict"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "detour", Subsystem: "webhook", Name: "request_seconds", Buckets: secondsBuckets, Help: "Time of each request, by path.",
		}, []string{"path"}),
	}
	m.registry.MustRegister(m.requests, m.seconds,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "detour", Subsystem: "webhook", Name: "certificate_expiry_timestamp_seconds",
			Help: "When the certificate that is served expires, as a Unix time; 0 if there is none.",
		}, func() float64 {
			if at := expiry(); !at.IsZero() {
				return float64(at.Unix())
			}
			return 0
		}))
	return m
}

func (m *metrics) count(path, verdict string, took time.Duration) {
	m.requests.WithLabelValues(path, verdict).Inc()
	m.seconds.WithLabelValues(path).Observe(took.Seconds())
}
