// Command floorget is the smallest chained plugin that asks an API server. It does what floor does, and first gets two paths at
// the same time over one connection: DETOUR_BENCH_POD and DETOUR_BENCH_CONFIG, relative to the URL DETOUR_BENCH_SERVER.
// DETOUR_BENCH_CA and DETOUR_BENCH_TOKEN are files.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/detour-cni/detour/scripts/bench/internal/least"
)

func main() { least.Main("floorget", lookup) }

func lookup() error {
	ca, err := os.ReadFile(os.Getenv("DETOUR_BENCH_CA"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(os.Getenv("DETOUR_BENCH_TOKEN"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New("DETOUR_BENCH_CA is not a certificate")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, MaxConnsPerHost: 1}}
	config := make(chan error)
	go func() { config <- get(client, "DETOUR_BENCH_CONFIG", string(token)) }()
	return errors.Join(get(client, "DETOUR_BENCH_POD", string(token)), <-config)
}

func get(client *http.Client, variable, token string) error {
	req, err := http.NewRequest(http.MethodGet, os.Getenv("DETOUR_BENCH_SERVER")+os.Getenv(variable), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", req.URL, resp.Status)
	}
	_, err = io.ReadAll(resp.Body)
	return err
}
