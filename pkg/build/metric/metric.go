// Package metric has the metrics that each of detour's servers exports. It is apart from pkg/build so that the plugin is without
// Prometheus.
package metric

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/detour-cni/detour/pkg/build"
)

// NewRegistry returns a registry with detour_build_info and the metrics of Go and of the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(info(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func info() prometheus.Collector {
	i := build.Get()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "detour", Name: "build_info", Help: "Always 1.",
		ConstLabels: prometheus.Labels{"version": i.Version, "commit": i.Commit, "goversion": i.Go},
	})
	g.Set(1)
	return g
}
