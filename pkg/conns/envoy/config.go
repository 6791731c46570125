// Package envoy reads a running Envoy's configuration from its admin port and says what Envoy does with a connection to some
// address: which listener and filter chain take it, and to which cluster they lead. It is pure but for Ask.
package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Config is what Envoy's listeners, routes and clusters say about where connections go.
type Config struct {
	listeners []listener
	clusters  map[string]*cluster
	routes    map[string]routeConfig
}

type listener struct {
	Name                string        `json:"name"`
	Address             address       `json:"address"`
	AdditionalAddresses []addressItem `json:"additional_addresses"`
	FilterChains        []chain       `json:"filter_chains"`
	DefaultChain        *chain        `json:"default_filter_chain"`
	UseOriginalDst      bool          `json:"use_original_dst"`
	ListenerFilters     []struct {
		Name string `json:"name"`
	} `json:"listener_filters"`
}

type addressItem struct {
	Address address `json:"address"`
}

type address struct {
	SocketAddress struct {
		Address   string `json:"address"`
		PortValue uint16 `json:"port_value"`
	} `json:"socket_address"`
}

// at is zero for what is no IP address, such as a pipe.
func (a address) at() netip.AddrPort {
	addr, err := netip.ParseAddr(a.SocketAddress.Address)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, a.SocketAddress.PortValue)
}

func (l listener) addresses() []netip.AddrPort {
	all := []netip.AddrPort{l.Address.at()}
	for _, more := range l.AdditionalAddresses {
		all = append(all, more.Address.at())
	}
	return all
}

// inspects reports whether the listener has the filter that recognises a protocol: "http_inspector" or "tls_inspector".
func (l listener) inspects(filter string) bool {
	for _, f := range l.ListenerFilters {
		if strings.HasSuffix(f.Name, filter) {
			return true
		}
	}
	return false
}

type chain struct {
	Name    string     `json:"name"`
	Match   chainMatch `json:"filter_chain_match"`
	Filters []struct {
		TypedConfig filterConfig `json:"typed_config"`
	} `json:"filters"`
}

// chainMatch lacks the matches on a connection's source, which are the same for all that the pod makes.
type chainMatch struct {
	DestinationPort uint16 `json:"destination_port"`
	PrefixRanges    []struct {
		AddressPrefix string `json:"address_prefix"`
		PrefixLen     int    `json:"prefix_len"`
	} `json:"prefix_ranges"`
	ServerNames          []string `json:"server_names"`
	TransportProtocol    string   `json:"transport_protocol"`
	ApplicationProtocols []string `json:"application_protocols"`
}

// filterConfig has the fields of a TcpProxy and of an HttpConnectionManager that say where connections go.
type filterConfig struct {
	Type             string           `json:"@type"`
	Cluster          string           `json:"cluster"`
	WeightedClusters weightedClusters `json:"weighted_clusters"`
	RDS              struct {
		RouteConfigName string `json:"route_config_name"`
	} `json:"rds"`
	RouteConfig *routeConfig `json:"route_config"`
}

type weightedClusters struct {
	Clusters []struct {
		Name string `json:"name"`
	} `json:"clusters"`
}

func (f filterConfig) is(kind string) bool { return strings.HasSuffix(f.Type, "."+kind) }

type routeConfig struct {
	Name         string        `json:"name"`
	VirtualHosts []virtualHost `json:"virtual_hosts"`
}

type virtualHost struct {
	Name    string   `json:"name"`
	Domains []string `json:"domains"`
	Routes  []struct {
		Route struct {
			Cluster          string           `json:"cluster"`
			WeightedClusters weightedClusters `json:"weighted_clusters"`
		} `json:"route"`
		DirectResponse struct {
			Status int `json:"status"`
		} `json:"direct_response"`
	} `json:"routes"`
}

type cluster struct {
	Name        string `json:"name"`
	Type        string `json:"type"` // STATIC if empty and there is no ClusterType
	ClusterType *struct {
		Name string `json:"name"`
	} `json:"cluster_type"`
	LoadAssignment struct {
		Endpoints []struct {
			Endpoints []struct {
				Endpoint addressItem `json:"endpoint"`
			} `json:"lb_endpoints"`
		} `json:"endpoints"`
	} `json:"load_assignment"`

	endpoints []netip.AddrPort // as Envoy knows them now
}

// ParseConfig reads what /config_dump answers, piece by piece: of a large mesh it has tens of megabytes.
func ParseConfig(r io.Reader) (*Config, error) {
	c := &Config{clusters: map[string]*cluster{}, routes: map[string]routeConfig{}}
	d := json.NewDecoder(r)
	err := eachField(d, func(name string) error {
		if name != "configs" {
			return skip(d)
		}
		return eachElement(d, func() error { return eachField(d, func(name string) error { return c.section(d, name) }) })
	})
	if err != nil {
		return nil, fmt.Errorf("read Envoy's configuration: %w", err)
	}
	return c, nil
}

// section reads a field of one of the parts of a dump: ListenersConfigDump, ClustersConfigDump, RoutesConfigDump and others.
func (c *Config) section(d *json.Decoder, name string) error {
	switch name {
	case "static_listeners", "dynamic_listeners":
		return eachElement(d, func() error {
			var e struct {
				Listener    *listener `json:"listener"`
				ActiveState struct {
					Listener *listener `json:"listener"`
				} `json:"active_state"`
			}
			err := d.Decode(&e)
			for _, l := range []*listener{e.Listener, e.ActiveState.Listener} {
				if l != nil {
					c.listeners = append(c.listeners, *l)
				}
			}
			return err
		})
	case "static_clusters", "dynamic_active_clusters":
		return eachElement(d, func() error {
			var e struct {
				Cluster cluster `json:"cluster"`
			}
			err := d.Decode(&e)
			c.clusters[e.Cluster.Name] = &e.Cluster
			return err
		})
	case "static_route_configs", "dynamic_route_configs":
		return eachElement(d, func() error {
			var e struct {
				RouteConfig routeConfig `json:"route_config"`
			}
			err := d.Decode(&e)
			c.routes[e.RouteConfig.Name] = e.RouteConfig
			return err
		})
	}
	return skip(d)
}

// ParseEndpoints adds to the clusters what /clusters?format=json answers: the addresses behind each.
func (c *Config) ParseEndpoints(r io.Reader) error {
	d := json.NewDecoder(r)
	err := eachField(d, func(name string) error {
		if name != "cluster_statuses" {
			return skip(d)
		}
		return eachElement(d, func() error {
			var e struct {
				Name  string        `json:"name"`
				Hosts []addressItem `json:"host_statuses"`
			}
			err := d.Decode(&e)
			if known := c.clusters[e.Name]; known != nil {
				for _, h := range e.Hosts {
					known.endpoints = append(known.endpoints, h.Address.at())
				}
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("read Envoy's clusters: %w", err)
	}
	return nil
}

// errShape says that an answer is JSON, but not Envoy's.
var errShape = errors.New("it is not what Envoy's admin port answers")

// eachField visits the fields of an object. visit must read the field's value.
func eachField(d *json.Decoder, visit func(name string) error) error {
	return each(d, '{', func() error {
		name, err := d.Token()
		if err != nil {
			return err
		}
		return visit(name.(string))
	})
}

// eachElement visits the elements of a list. visit must read the element.
func eachElement(d *json.Decoder, visit func() error) error { return each(d, '[', visit) }

func each(d *json.Decoder, open json.Delim, visit func() error) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	if t != open {
		return errShape
	}
	for d.More() {
		if err := visit(); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// skip reads a value, of whatever size, and keeps nothing of it.
func skip(d *json.Decoder) error {
	for depth := 0; ; {
		t, err := d.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}
