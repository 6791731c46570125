package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// How long to wait before listing again: doubled from the first to the last, from the first again after a good while.
const (
	firstRelist = 500 * time.Millisecond
	lastRelist  = 15 * time.Second
	goodWhile   = time.Minute
)

// follow keeps the store equal to what the source lists, until ctx ends or enough holds for an error. All else, and that
// the API server is down, is tried again; the store keeps what it has meanwhile.
func follow(ctx context.Context, what string, log *slog.Logger, source cache.ListerWatcher, kind any, store cache.ReflectorStore, enough func(error) bool) {
	logger := logr.FromSlogHandler(log.Handler())
	ctx = klog.NewContext(ctx, logger)
	r := cache.NewReflectorWithOptions(source, kind, store, cache.ReflectorOptions{Name: what, Logger: &logger})
	delay := firstRelist
	for ctx.Err() == nil {
		began := time.Now()
		err := r.ListAndWatchWithContext(ctx)
		switch {
		case ctx.Err() != nil || err != nil && enough(err):
			return
		case err != nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err):
			log.Warn("the API server could not be listed; trying again", "what", what, "error", err.Error())
		}
		if time.Since(began) > goodWhile {
			delay = firstRelist
		}
		pause(ctx, delay/2+rand.N(delay))
		delay = min(2*delay, lastRelist)
	}
}
