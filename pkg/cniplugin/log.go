package cniplugin

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/detour-cni/detour/pkg/netconf"
)

// openLog returns a logger of JSON lines to the net conf's logFile, or to standard error if there is none or it can't be
// opened: a log is no reason to keep a pod from starting.
func openLog(conf netconf.Conf) (*slog.Logger, io.Closer) {
	options := &slog.HandlerOptions{Level: conf.LogLevel}
	if conf.LogFile == "" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), io.NopCloser(nil)
	}
	file, err := os.OpenFile(conf.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		fmt.Fprintf(os.Stderr, "detour: open log: %v\n", err)
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), io.NopCloser(nil)
	}
	return slog.New(slog.NewJSONHandler(file, options)), file
}

// stages takes the time of one stage after the other, in milliseconds.
type stages struct {
	began, last time.Time
	taken       []stage
}

type stage struct {
	name string
	ms   float64
}

func startStages() *stages {
	now := time.Now()
	return &stages{began: now, last: now}
}

// done ends the stage that ran since the last call.
func (s *stages) done(name string) {
	now := time.Now()
	s.taken = append(s.taken, stage{name, milliseconds(now.Sub(s.last))})
	s.last = now
}

func (s *stages) attr() slog.Attr {
	var attrs []any
	for _, t := range s.taken {
		attrs = append(attrs, slog.Float64(t.name, t.ms))
	}
	return slog.Group("ms", append(attrs, slog.Float64("total", milliseconds(time.Since(s.began))))...)
}

// byName are the stages by their names.
func (s *stages) byName() map[string]float64 {
	m := map[string]float64{}
	for _, t := range s.taken {
		m[t.name] += t.ms
	}
	return m
}

func milliseconds(d time.Duration) float64 { return float64(d.Round(10*time.Microsecond)) / 1e6 }
