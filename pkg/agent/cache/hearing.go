package cache

import (
	"sync/atomic"
	"time"
)

// hearing remembers when the API server last said something. A new wall time doesn't matter to it. It is safe for concurrent use.
type hearing struct {
	began time.Time
	last  atomic.Int64 // how long after began
}

func newHearing() *hearing { return &hearing{began: time.Now()} }

func (h *hearing) hear() { h.last.Store(int64(time.Since(h.began))) }

// silence is the time since the last hear, or since newHearing.
func (h *hearing) silence() time.Duration {
	return time.Since(h.began) - time.Duration(h.last.Load())
}
