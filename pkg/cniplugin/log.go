package cniplugin

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/detour-cni/detour/pkg/build"
	"github.com/detour-cni/detour/pkg/pod"
)

// openLog starts a log of JSON lines in the net conf's logFile, or on standard error if there is none or it can't be opened: a
// log is no reason to keep a pod from starting. Every line says which call it is about; its event is stable across versions.
func (c *call) openLog() {
	var out io.Writer = os.Stderr
	c.logFile = io.NopCloser(nil)
	if c.conf.LogFile != "" {
		file, err := os.OpenFile(c.conf.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err == nil {
			out, c.logFile = file, file
		} else {
			fmt.Fprintf(os.Stderr, "detour: open log: %v\n", err)
		}
	}
	c.log = slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: c.conf.LogLevel})).With("verb", c.verb, "version", build.Version, "commit", build.Commit)
	if c.key.ContainerID != "" { // GC and STATUS are about none
		c.log = c.log.With("containerID", c.key.ContainerID, "netns", c.netns)
	}
	if c.pod != (pod.ID{}) {
		c.log = c.log.With("pod", c.pod.String(), "podUID", c.pod.UID)
	}
}
