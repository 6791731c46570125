package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// logLine is what the demo shows of the line that detour logs for an ADD.
type logLine struct {
	Verb     string
	Pod      string
	Outcome  string
	Reason   string
	Backend  string
	Rules    int
	Families []string
	Warnings []string
	MS       struct{ Total float64 }
}

// readLog returns the lines about ADDs. There is no file where detour was not called.
func readLog(path string) ([]logLine, error) {
	file, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read detour's log: %w", err)
	}
	defer file.Close()
	var adds []logLine
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var l logLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("read detour's log: %w", err)
		}
		if l.Verb == "ADD" {
			adds = append(adds, l)
		}
	}
	return adds, nil
}

func (l logLine) String() string {
	text := fmt.Sprintf("%s in %.1f ms", l.Outcome, l.MS.Total)
	if l.Rules > 0 {
		text += fmt.Sprintf(": %d rules, %s, by %s", l.Rules, strings.Join(l.Families, " and "), l.Backend)
	}
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	return strings.Join(append([]string{text}, l.Warnings...), "; warning: ")
}
