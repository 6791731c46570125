package agent

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// Not parallel: it counts goroutines.
func TestWatchesThatEndLeaveNothingBehind(t *testing.T) {
	s := newAPIServer(t)
	s.put(podPath("shop", "a"), testPod("a"))
	s.put(configPath, testConfig())
	a := newTestAgent(t, s, nil)
	stop := start(t, a)
	eventually(t, "the first list", a.isSynced)
	for range 3 {
		lists := s.count("GET /api/v1/pods")
		s.expire()
		eventually(t, "it is listed again", func() bool { return s.count("GET /api/v1/pods") >= lists+2 })
	}
	stop()
	s.setDown(true)
	var left string
	eventually(t, "all goroutines end", func() bool {
		s.CloseClientConnections()
		time.Sleep(10 * time.Millisecond)
		buffer := make([]byte, 1<<20)
		left = ""
		for g := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
			if strings.Contains(g, "pkg/agent.(*Agent)") || strings.Contains(g, "apimachinery/pkg/watch") || strings.Contains(g, "client-go/tools/cache") {
				left += g + "\n\n"
			}
		}
		return left == ""
	})
}
