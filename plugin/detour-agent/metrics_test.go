package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestTheMetricsSayOfTheHostWhatAlertsNeed(t *testing.T) {
	a := startLimited(t, newBigServer(t, 1, 100, true))
	a.wait(t, "the node is ready, and the token on the host expires", func() bool {
		resp, err := http.Get("http://" + a.metrics + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(text), "\ndetour_ready 1\n") &&
			strings.Contains(string(text), "\ndetour_token_expiry_timestamp_seconds 1.795e+09\n")
	})
}
