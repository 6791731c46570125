package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// askContainerd asks containerd for the version of its CRI, which is what a kubelet does first: it ends if there is no
// answer. containerd listens before it can answer.
func askContainerd(ctx context.Context, h *host) error {
	socket := fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", h.machine.PID())
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()

	// A message of gRPC: not compressed, of 0 bytes.
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://containerd/runtime.v1.RuntimeService/Version", bytes.NewReader(make([]byte, 5)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	for _, header := range []http.Header{response.Header, response.Trailer} { // without an answer, there is only the first
		if header.Get("Grpc-Status") == "0" {
			return nil
		}
		err = errors.Join(err, errors.New(header.Get("Grpc-Message")))
	}
	return err
}
