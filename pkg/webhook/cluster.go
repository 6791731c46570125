package webhook

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/version"
)

// nativeSince is the minor version of Kubernetes 1 from which on clusters have native sidecars, unless somebody has switched them off.
const nativeSince = 29

// How often the webhook asks for the cluster's version: a cluster is upgraded while it runs. And how soon again after a failure.
const (
	versionAge   = 10 * time.Minute
	versionRetry = 5 * time.Second
)

// cluster knows which Kubernetes this is. It is safe for concurrent use.
type cluster struct {
	get   func(ctx context.Context, path string, out any) error
	pause func(context.Context, time.Duration)
	log   *slog.Logger
	known atomic.Pointer[version.Info]
}

// run keeps the version up to date until ctx ends.
func (c *cluster) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		next, now := versionAge, ""
		var v version.Info
		if err := c.get(ctx, "/version", &v); err != nil {
			next, now = versionRetry, err.Error()
		} else {
			c.known.Store(&v)
		}
		if now != "" && now != said && ctx.Err() == nil {
			c.log.Warn("the cluster's version is not known; trying again", "event", "version-failed", "error", now)
		}
		said = now
		c.pause(ctx, next)
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// sidecars reports whether the cluster has native sidecars, and why it hasn't.
func (c *cluster) sidecars() (native bool, why string) {
	v := c.known.Load()
	if v == nil {
		return false, "the cluster's version is not known"
	}
	if major, minor := leading(v.Major), leading(v.Minor); major > 1 || major == 1 && minor >= nativeSince {
		return true, ""
	}
	return false, fmt.Sprintf("Kubernetes has them from 1.%d on and this is %s.%s", nativeSince, v.Major, v.Minor)
}

// leading is the number at the beginning: some providers have a minor version "28+".
func leading(s string) int {
	n, err := strconv.Atoi(s[:len(s)-len(strings.TrimLeft(s, "0123456789"))])
	if err != nil {
		return 0
	}
	return n
}
