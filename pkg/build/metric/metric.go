// Package metric has the metric of version and commit. It is apart from pkg/build so that the plugin is without Prometheus.
package metric

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/build"
)

// Info is the gauge detour_build_info.
func Info() prometheus.Collector {
	i := build.Get()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "detour", Name: "build_info", Help: "Always 1.",
		ConstLabels: prometheus.Labels{"version": i.Version, "commit": i.Commit, "goversion": i.Go},
	})
	g.Set(1)
	return g
}
