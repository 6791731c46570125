package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
)

// ErrNotEnvoy says that something else than Envoy answers, or nothing.
var ErrNotEnvoy = errors.New("no Envoy answers at the admin port")

// maxAnswer bounds what is read of one answer, in bytes. That of a mesh of 5,000 services has 50 MB.
const maxAnswer = 256 << 20

// Dial connects to an address in the pod's network namespace.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Ask reads the configuration of the Envoy whose admin port this is. The error wraps ErrNotEnvoy if there is none.
func Ask(ctx context.Context, dial Dial, port uint16) (*Config, error) {
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	a := admin{http.Client{Transport: transport}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String()}
	if err := a.recognise(ctx); err != nil {
		return nil, fmt.Errorf("%w (%s): %w", ErrNotEnvoy, a.address, err)
	}
	var c *Config
	err := a.get(ctx, "/config_dump", func(r io.Reader) (err error) {
		c, err = ParseConfig(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := a.get(ctx, "/clusters?format=json", c.ParseEndpoints); err != nil {
		return nil, err
	}
	return c, nil
}

type admin struct {
	http.Client
	address string
}

func (a admin) get(ctx context.Context, path string, read func(io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.address+path, nil)
	if err != nil {
		return err
	}
	response, err := a.Do(request)
	if err != nil {
		return fmt.Errorf("ask Envoy's admin port: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask Envoy's admin port for %s: it answers %s", path, response.Status)
	}
	return read(io.LimitReader(response.Body, maxAnswer))
}

// recognise looks for what only Envoy answers: other proxies, such as Pipy, have the same port.
func (a admin) recognise(ctx context.Context) error {
	return a.get(ctx, "/server_info", func(r io.Reader) error {
		var info struct {
			Version string          `json:"version"`
			Options json.RawMessage `json:"command_line_options"`
		}
		if err := json.NewDecoder(r).Decode(&info); err != nil || info.Version == "" || info.Options == nil {
			return errShape
		}
		return nil
	})
}
