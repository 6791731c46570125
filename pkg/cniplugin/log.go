package cniplugin

import (
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/build"
	"github.com/detour-cni/detour/pkg/hostfile"
	"github.com/detour-cni/detour/pkg/pod"
)

// logFile is the net conf's. A line that it does not take, as its disk is full or nobody reads the FIFO, goes to standard error.
type logFile int

func openLogFile(path string) (logFile, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return logFile(fd), nil
}

func (f logFile) Write(line []byte) (int, error) {
	if n, err := unix.Write(int(f), line); err == nil && n == len(line) {
		return n, nil
	}
	return os.Stderr.Write(line)
}

func (f logFile) Close() error { return unix.Close(int(f)) }

// openLog starts a log of JSON lines in the net conf's logFile, or on standard error if there is none or it can't be opened: a
// log is no reason to keep a pod from starting. Every line says which call it is about; its event is stable across versions.
func (c *call) openLog() {
	var out io.Writer = os.Stderr
	c.logFile = io.NopCloser(nil)
	if c.conf.LogFile != "" {
		file, err := openLogFile(c.conf.LogFile)
		if err == nil {
			out, c.logFile = file, file
		} else {
			fmt.Fprintf(os.Stderr, "detour: open log: %v\n", hostfile.Advise(err))
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
