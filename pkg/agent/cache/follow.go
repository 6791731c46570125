package cache

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// newInformer returns client-go's cache of the objects that the source lists. It tries again whatever happens, and keeps the
// objects while the API server is away. failed hears of each error.
func newInformer(source cache.ListerWatcher, example runtime.Object, what string, log *slog.Logger, failed func(error)) cache.SharedIndexInformer {
	i := cache.NewSharedIndexInformer(source, example, 0, nil)
	err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			log.Warn("API server not listed; trying again", "event", "list-failed", "resource", what, "error", err.Error())
		}
		failed(err)
	})
	if err != nil {
		panic(err) // only a running informer refuses a handler
	}
	return i
}

// withLog lets client-go log to log.
func withLog(ctx context.Context, log *slog.Logger) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(log.Handler()))
}
