package cniplugin

import (
	"log/slog"
	"time"
)

// stages measures consecutive stages, in milliseconds.
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

// done ends the stage that began with the last call.
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

// byName returns the milliseconds by the stages' names.
func (s *stages) byName() map[string]float64 {
	m := map[string]float64{}
	for _, t := range s.taken {
		m[t.name] += t.ms
	}
	return m
}

func milliseconds(d time.Duration) float64 { return float64(d.Round(10*time.Microsecond)) / 1e6 }
