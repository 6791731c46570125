package agent

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
)

// Not parallel: it counts goroutines.
func TestWatchesThatEndLeaveNothingBehind(t *testing.T) {
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, nil)
	stop := start(t, a)
	agenttest.Eventually(t, "the first list", a.isSynced)
	for range 3 {
		lists := s.Count("GET /api/v1/pods")
		s.Expire()
		agenttest.Eventually(t, "it is listed again", func() bool { return s.Count("GET /api/v1/pods") >= lists+2 })
	}
	stop()
	s.SetDown(true)
	var left string
	agenttest.Eventually(t, "all goroutines end", func() bool {
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
