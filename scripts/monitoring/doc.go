// Package monitoring holds the alerts and the dashboard of deploy/components/monitoring against the metrics that a real agent
// exports, and against promtool, which scripts/monitoring.sh builds. It is a module of its own: nothing else needs Prometheus' parser.
package monitoring
