package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"
)

// As many requests as the rollout of a large Deployment makes, to a handler that lets most of them wait before it reads them.
func TestRequestsThatWaitDoNotKeepOthersFromArriving(t *testing.T) {
	t.Parallel()
	crt, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	turn := make(chan struct{}, 2)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		ServeTLS(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			turn <- struct{}{}
			defer func() { <-turn }()
			if n, err := io.Copy(io.Discard, r.Body); err != nil {
				http.Error(w, fmt.Sprintf("after %d bytes: %v", n, err), http.StatusBadRequest)
			}
		}), &tls.Config{Certificates: []tls.Certificate{pair}}, time.Millisecond, slog.Default())
	})
	client := http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // loopback
	defer client.CloseIdleConnections()
	var requests sync.WaitGroup
	defer requests.Wait()
	for range 200 {
		requests.Go(func() {
			resp, err := client.Post("https://"+l.Addr().String(), "application/json", bytes.NewReader(make([]byte, 100_000)))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
				t.Errorf("%s %s %s", resp.Proto, resp.Status, text)
			}
		})
	}
}
