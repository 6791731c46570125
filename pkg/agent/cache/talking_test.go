package cache

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestAnAnswerThatFallsSilentEnds(t *testing.T) {
	t.Parallel()
	const silence = 500 * time.Millisecond
	for name, before := range map[string]int{"before it begins": 0, "later": 5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for range before { // for longer than the silence
					io.WriteString(w, "x")
					w.(http.Flusher).Flush()
					time.Sleep(silence / 4)
				}
				<-r.Context().Done()
			}))
			t.Cleanup(s.Close)
			var heard atomic.Int64
			ctx := listening(t.Context(), func() { heard.Add(1) })
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"?watch=true", nil)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			var got []byte
			go func() {
				resp, err := talking{http.DefaultTransport, silence}.RoundTrip(req)
				if err == nil {
					got, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				ended <- err
			}()
			select {
			case err := <-ended:
				if !errors.Is(err, errSilent) || len(got) != before || int(heard.Load()) < min(before, 1) {
					t.Errorf("%v after %q, heard %d times", err, got, heard.Load())
				}
			case <-time.After(nettest.Patience):
				t.Error("it does not end")
			}
		})
	}
}

// A list that is cut is no news.
func TestAListIsHeardAtItsEnd(t *testing.T) {
	t.Parallel()
	for name, length := range map[string]string{"whole": "1", "cut": "2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", length)
				io.WriteString(w, "x")
			}))
			t.Cleanup(s.Close)
			heard := 0
			req, err := http.NewRequestWithContext(listening(t.Context(), func() { heard++ }), http.MethodGet, s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := talking{http.DefaultTransport, time.Minute}.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.ReadAll(resp.Body); (err == nil) != (heard == 1) || (err == nil) != (name == "whole") {
				t.Errorf("heard %d times, %v", heard, err)
			}
		})
	}
}

func TestAFailureIsNotHeard(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	req, err := http.NewRequestWithContext(listening(t.Context(), func() { t.Error("heard") }), http.MethodGet, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := talking{http.DefaultTransport, time.Minute}.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
}
