package main

import (
	"strings"
	"testing"
)

func TestProbeRefusesWhatIsNoPort(t *testing.T) {
	for _, arg := range []string{"--outbound-port=0", "--inbound-port=0", "--inbound-port=65537"} {
		c := probeCommand()
		c.SilenceUsage, c.SilenceErrors = true, true
		c.SetArgs([]string{arg})
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "a port is 1 to 65535") {
			t.Errorf("%s: %v", arg, err)
		}
	}
}
