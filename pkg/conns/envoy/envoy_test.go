package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// load reads a recorded configuration. Those called istio-* are what istiod's own code makes for a sidecar, less its access logs, HTTP
// filters and TLS contexts; guide.json is the one of the published redis story, osm.json has the shape of Open Service Mesh's.
func load(t testing.TB, name string) *Config {
	t.Helper()
	file, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c, err := ParseConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExplain(t *testing.T) {
	const (
		own7000  = "Envoy's listener 0.0.0.0_7000 (0.0.0.0:7000) takes it, made for redis-ui.shop.svc.cluster.local:7000: "
		fallback = "Envoy's listener virtualOutbound (0.0.0.0:15001) takes it, as no other has its address or port: "
		osm      = "Envoy's listener outbound-listener (0.0.0.0:15001) takes it"
	)
	for _, c := range []struct{ file, to, want string }{
		{"guide.json", "10.0.0.6:7000", own7000 + "all of it goes by routes 7000 (requests to the address itself go to PassthroughCluster), and is answered with 400 Bad Request if it is not HTTP"},
		{"guide.json", "10.64.192.14:7000", strings.Replace(own7000, ", made for redis-ui.shop.svc.cluster.local:7000", "", 1) + "all of it goes to BlackHoleCluster, which has no endpoint: Envoy closes it"},
		{"guide.json", "10.0.0.6:7003", fallback + "all of it goes to PassthroughCluster: on to where it was going"},
		{"istio-allow-any.json", "10.0.0.6:7000", own7000 + "HTTP goes by routes 7000 (requests to the address itself go to PassthroughCluster); everything else goes by filter chain PassthroughFilterChain to PassthroughCluster: on to where it was going"},
		{"istio-allow-any.json", "10.233.0.115:7000", own7000 + "HTTP goes by routes 7000 (requests to the address itself go to outbound|7000||redis-ui.shop.svc.cluster.local); everything else goes by filter chain PassthroughFilterChain to PassthroughCluster: on to where it was going"},
		{"istio-allow-any.json", "10.0.0.6:7003", fallback + "all of it goes by filter chain virtualOutbound-catchall-tcp to PassthroughCluster: on to where it was going"},
		{"istio-allow-any.json", "10.233.0.116:7010", "Envoy's listener 10.233.0.116_7010 (10.233.0.116:7010) takes it, made for queue.shop.svc.cluster.local:7010: all of it goes to cluster outbound|7010||queue.shop.svc.cluster.local"},
		{"istio-allow-any.json", "10.0.0.6:7010", fallback + "all of it goes by filter chain virtualOutbound-catchall-tcp to PassthroughCluster: on to where it was going"},
		{"istio-allow-any.json", "[2001:db8::6]:7000", fallback + "all of it goes by filter chain virtualOutbound-catchall-tcp to PassthroughCluster: on to where it was going"},
		{"istio-registry-only.json", "10.0.0.6:7000", own7000 + "HTTP goes by routes 7000 (Envoy answers requests to the address itself with 502); everything else goes by filter chain PassthroughFilterChain to BlackHoleCluster, which has no endpoint: Envoy closes it"},
		{"istio-registry-only.json", "10.0.0.6:7003", fallback + "all of it goes by filter chain virtualOutbound-catchall-tcp to BlackHoleCluster, which has no endpoint: Envoy closes it"},
		{"istio-registry-only.json", "127.0.0.1:15001", "Envoy's listener virtualOutbound (0.0.0.0:15001) takes it, as no other has its address or port: all of it goes by filter chain virtualOutbound-blackhole to BlackHoleCluster, which has no endpoint: Envoy closes it"},
		{"osm.json", "10.0.0.6:6379", osm + ": all of it goes by filter chain egress-tcp.6379 to 6379: on to where it was going"},
		{"osm.json", "10.0.0.6:7000", osm + ": all of it is closed: no filter chain takes it"},
		{"osm.json", "10.96.0.7:8080", osm + ": all of it goes by filter chain outbound-web to cluster shop/web|8080, canary"},
		{"osm.json", "10.0.0.6:15010", osm + ": all of it is closed: no filter chain takes it"}, // it hands nothing off
		{"osm.json", "10.96.0.8:8080", osm + ": all of it is closed: no filter chain takes it"},
		{"osm.json", "10.0.0.6:443", osm + ": TLS for example.org goes by filter chain egress-https.443 to 6379: on to where it was going; TLS for *.example.com goes by filter chain egress-https.443 to 6379: on to where it was going; everything else is closed: no filter chain takes it"},
	} {
		a, ok := load(t, c.file).Explain(netip.MustParseAddrPort(c.to), 15001)
		if !ok || a.String() != c.want {
			t.Errorf("%s %s: %v\ngot  %s\nwant %s", c.file, c.to, ok, a, c.want)
		}
	}
	if _, ok := load(t, "osm.json").Explain(netip.MustParseAddrPort("10.0.0.6:80"), 15006); ok {
		t.Error("there is no listener at 15006")
	}
}

// The longest prefix counts, then the most exact server name, in whatever order the chains are.
func TestChoose(t *testing.T) {
	t.Parallel()
	var l listener
	err := json.Unmarshal([]byte(`{"filter_chains": [
		{"name": "any"},
		{"name": "8", "filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}},
		{"name": "32", "filter_chain_match": {"prefix_ranges": [{"address_prefix": "192.0.2.1", "prefix_len": 32}, {"address_prefix": "10.0.0.6", "prefix_len": 32}]}},
		{"name": "16", "filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 16}]}},
		{"name": "*.org", "filter_chain_match": {"destination_port": 443, "server_names": ["*.org"]}},
		{"name": "a.org", "filter_chain_match": {"destination_port": 443, "server_names": ["a.org"]}},
		{"name": "*.b.org", "filter_chain_match": {"destination_port": 443, "server_names": ["*.b.org"]}}]}`), &l)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ to, server, want string }{
		{"10.0.0.6:80", "", "32"},
		{"10.0.1.6:80", "", "16"},
		{"10.1.0.6:80", "", "8"},
		{"11.0.0.6:80", "", "any"},
		{"11.0.0.6:443", "a.org", "a.org"},
		{"11.0.0.6:443", "x.b.org", "*.b.org"},
		{"11.0.0.6:443", "x.org", "*.org"},
		{"11.0.0.6:443", "x.net", ""}, // Envoy does not go back to the chains without a port
	} {
		name := ""
		if ch := l.choose(netip.MustParseAddrPort(c.to), tlsTo(c.server)); ch != nil {
			name = ch.Name
		}
		if name != c.want {
			t.Errorf("%s %s: %q, want %q", c.to, c.server, name, c.want)
		}
	}
}

// A listener at just the address comes before one at all addresses.
func TestHandOff(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig(strings.NewReader(`{"configs": [{"static_listeners": [
		{"listener": {"name": "all", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}}}},
		{"listener": {"name": "one", "address": {"socket_address": {"address": "10.0.0.6", "port_value": 80}}}},
		{"listener": {"name": "both", "address": {"socket_address": {"address": "10.0.0.7", "port_value": 81}},
			"additional_addresses": [{"address": {"socket_address": {"address": "::", "port_value": 81}}}]}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"10.0.0.6:80": "one", "10.0.0.7:80": "all", "[fd00::1]:80": "", "[fd00::1]:81": "both", "10.0.0.8:81": "both"} {
		name := ""
		if l := c.handOff(netip.MustParseAddrPort(to)); l != nil {
			name = l.Name
		}
		if name != want {
			t.Errorf("%s: %q, want %q", to, name, want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	c := load(t, "istio-allow-any.json")
	file, err := os.Open("testdata/clusters.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := c.ParseEndpoints(file); err != nil {
		t.Fatal(err)
	}
	a, _ := c.Explain(netip.MustParseAddrPort("10.233.0.115:7000"), 15001)
	if len(a.Endpoints) != 1 || a.Endpoints[0].String() != "10.64.7.7:8080" || a.Open || a.Drops() || !a.Passes() {
		t.Errorf("%+v", a)
	}
	for to, want := range map[string][3]bool{ // drops, passes, open
		"10.0.0.6:7000":  {true, false, false},
		"10.0.0.6:6379":  {false, true, false},
		"10.96.0.7:8080": {false, false, true},
	} {
		a, _ := load(t, "osm.json").Explain(netip.MustParseAddrPort(to), 15001)
		if got := [3]bool{a.Drops(), a.Passes(), a.Open}; got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	whole, err := os.ReadFile("testdata/guide.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "[]", "null", `{"configs": {}}`, `{"configs": [1]}`, `{"configs": [{"dynamic_listeners": 1}]}`, string(whole[:len(whole)/2])} {
		if _, err := ParseConfig(strings.NewReader(text)); err == nil {
			t.Errorf("%.40q is taken for a configuration", text)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	// The fuzzer is slow with long seeds.
	const listener = `{"name":"l","address":{"socket_address":{"address":"0.0.0.0","port_value":1}},"use_original_dst":true,"filter_chains":[%s]}`
	for _, chain := range []string{
		`{"filter_chain_match":{"prefix_ranges":[{"address_prefix":"::","prefix_len":0}]}}`,
		`{"filters":[{"typed_config":{"@type":".TcpProxy","cluster":"a|1||b"}}]}`,
		`{"filters":[{"typed_config":{"@type":".HttpConnectionManager","rds":{"route_config_name":"r"}}}]}`,
	} {
		f.Add(fmt.Sprintf(`{"configs":[{"static_listeners":[{"listener":`+listener+`}]}]}`, chain))
	}
	f.Add(`{"configs":[{"dynamic_route_configs":[{"route_config":{"name":"r","virtual_hosts":[{"domains":["*"],"routes":[{}]}]}}]}]}`)
	f.Add(`{"cluster_statuses":[{"name":"a","host_statuses":[{"address":{}}]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseConfig(strings.NewReader(text))
		if err != nil {
			return
		}
		_ = c.ParseEndpoints(strings.NewReader(text))
		for _, l := range c.listeners {
			a, ok := c.Explain(netip.MustParseAddrPort("10.64.192.14:7000"), l.Address.at().Port())
			if ok && len(a.Paths) == 0 {
				t.Errorf("no path: %+v", a)
			}
			_ = a.String()
		}
	})
}

// dialTo dials the server whatever the address.
func dialTo(s *httptest.Server) Dial {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}
}

func TestAskOnlyEnvoy(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]http.HandlerFunc{
		"nothing":    http.NotFound,
		"pipy":       func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<!DOCTYPE html><title>Pipy</title>") },
		"other JSON": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"version": "1.0"}`) },
	} {
		server := httptest.NewServer(handler)
		if c, err := Ask(t.Context(), dialTo(server), 15000); !errors.Is(err, ErrNotEnvoy) || c != nil {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
	}
	refused := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") }
	if _, err := Ask(t.Context(), refused, 15000); !errors.Is(err, ErrNotEnvoy) {
		t.Error(err)
	}
}

// An Envoy that stops in the middle of an answer is not one without listeners.
func TestAskBrokenAnswer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/server_info":
			http.ServeFile(w, r, "testdata/server_info.json")
		case "/config_dump":
			io.WriteString(w, `{"configs": [{"dynamic_listeners": [{"name": "a"`)
		}
	}))
	defer server.Close()
	if _, err := Ask(t.Context(), dialTo(server), 15000); err == nil || errors.Is(err, ErrNotEnvoy) || !strings.Contains(err.Error(), "read Envoy's configuration") {
		t.Error(err)
	}
}
