package envoy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Fate is what becomes of a connection that a path of Envoy takes.
type Fate string

// The fates.
const (
	Passthrough Fate = "passthrough" // on to where it was going
	Cluster     Fate = "cluster"     // to an endpoint of a cluster
	HTTP        Fate = "http"        // by routes; what is not HTTP is answered with 400
	BlackHole   Fate = "black-hole"  // to a cluster without endpoints: it is closed
	Closed      Fate = "closed"      // no filter chain takes it: it is closed
)

// Path is what Envoy does with connections that carry one kind of traffic.
type Path struct {
	// Traffic is the kind; empty for all that have no path of their own.
	Traffic string `json:"traffic,omitempty"`
	Fate    Fate   `json:"fate"`
	Chain   string `json:"filterChain,omitempty"`
	Routes  string `json:"routes,omitempty"`
	// Clusters are those of the filter chain, or of the route that an HTTP request to the address itself takes.
	Clusters []string `json:"clusters,omitempty"`
	// Status is what Envoy itself answers to such a request; 0 if it passes it on.
	Status int `json:"status,omitempty"`
}

// Passes reports whether Envoy may pass a connection on to where it was going.
func (a Answer) Passes() bool {
	return slices.ContainsFunc(a.Paths, func(p Path) bool { return p.Fate == Passthrough || p.Fate == HTTP && p.Status == 0 })
}

// Answer is what Envoy does with a connection.
type Answer struct {
	Listener string         `json:"listener"`
	Address  netip.AddrPort `json:"address"`
	// Fallback says that no listener has this address or port, so that the one to which the rules redirect keeps the connection.
	Fallback bool `json:"fallback"`
	// Services are those for which the listener was made.
	Services []string `json:"services,omitempty"`
	Paths    []Path   `json:"paths"`
	// Endpoints are the addresses to which Envoy may pass the connection on.
	Endpoints []netip.AddrPort `json:"endpoints,omitempty"`
	// Open says that there may be other endpoints, of clusters that choose them in a way of their own.
	Open bool `json:"open,omitempty"`
}

// Drops reports whether Envoy closes the connection whatever it carries.
func (a Answer) Drops() bool {
	return !slices.ContainsFunc(a.Paths, func(p Path) bool { return p.Fate != BlackHole && p.Fate != Closed })
}

// Explain says what Envoy does with a connection to an address that rules redirect to its listener at a port. ok is false if
// Envoy has no listener there.
func (c *Config) Explain(to netip.AddrPort, port uint16) (a Answer, ok bool) {
	first := c.listenerAt(port)
	if first == nil {
		return a, false
	}
	l := first
	if first.UseOriginalDst && to.Port() != port {
		if other := c.handOff(to); other != nil {
			l = other
		}
	}
	a = Answer{Listener: l.Name, Address: l.Address.at(), Fallback: first.UseOriginalDst && l == first}
	for _, t := range l.kinds(to) {
		p := c.path(l.choose(to, t), to, &a)
		p.Traffic = t.name
		a.Paths = append(a.Paths, p)
	}
	a.Paths = fold(a.Paths)
	a.Services, a.Endpoints = slices.Compact(a.Services), set(a.Endpoints)
	return a, true
}

func set(list []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

// kinds are the kinds of traffic that the listener tells apart.
func (l *listener) kinds(to netip.AddrPort) []traffic {
	all := []traffic{plainKind}
	if l.inspects("http_inspector") {
		all = append(all, httpKind)
	}
	if !l.inspects("tls_inspector") {
		return all
	}
	all = append(all, tlsKind)
	for _, c := range l.FilterChains {
		if rank(c.Match.DestinationPort != 0, c.Match.DestinationPort == to.Port()) == noMatch || c.Match.prefix(to.Addr()) == noMatch {
			continue
		}
		for _, name := range c.Match.ServerNames {
			all = append(all, tlsTo(name))
		}
	}
	return all
}

// fold leaves out the kinds of traffic that are treated like the plain one.
func fold(paths []Path) []Path {
	same := func(p Path) bool {
		q := paths[0]
		return p.Fate == q.Fate && p.Chain == q.Chain && p.Routes == q.Routes && p.Status == q.Status &&
			slices.Equal(p.Clusters, q.Clusters)
	}
	out := slices.DeleteFunc(slices.Clone(paths[1:]), same)
	paths[0].Traffic = ""
	return append(out, paths[0])
}

func (c *Config) path(ch *chain, to netip.AddrPort, a *Answer) Path {
	if ch == nil {
		return Path{Fate: Closed}
	}
	for _, f := range ch.Filters {
		switch config := f.TypedConfig; {
		case config.is("HttpConnectionManager"):
			return c.httpPath(config, ch.Name, to, a)
		case config.is("TcpProxy"):
			clusters := config.WeightedClusters.names(config.Cluster)
			p := Path{Fate: c.fate(clusters), Chain: ch.Name, Clusters: clusters}
			c.note(clusters, a)
			return p
		}
	}
	return Path{Fate: Closed, Chain: ch.Name}
}

func (w weightedClusters) names(only string) []string {
	if only != "" {
		return []string{only}
	}
	var all []string
	for _, c := range w.Clusters {
		all = append(all, c.Name)
	}
	return all
}

func (c *Config) httpPath(config filterConfig, name string, to netip.AddrPort, a *Answer) Path {
	routes := c.routes[config.RDS.RouteConfigName]
	if config.RouteConfig != nil {
		routes = *config.RouteConfig
	}
	p := Path{Fate: HTTP, Chain: name, Routes: routes.Name}
	var fallback, exact *virtualHost
	var services []string
	for i, h := range routes.VirtualHosts {
		switch {
		case slices.Contains(h.Domains, to.Addr().String()), slices.Contains(h.Domains, to.String()):
			exact = &routes.VirtualHosts[i]
		case slices.Contains(h.Domains, "*"):
			fallback = &routes.VirtualHosts[i]
		default:
			services = append(services, h.Name)
		}
		for _, r := range h.Routes {
			c.noteEndpoints(r.Route.WeightedClusters.names(r.Route.Cluster), a)
		}
	}
	host := exact
	if host == nil {
		host = fallback
	} else {
		services = []string{host.Name}
	}
	a.Services = append(a.Services, services...)
	if host == nil || len(host.Routes) == 0 {
		p.Status = 404
		return p
	}
	p.Status = host.Routes[0].DirectResponse.Status
	p.Clusters = host.Routes[0].Route.WeightedClusters.names(host.Routes[0].Route.Cluster)
	return p
}

func (c *Config) fate(clusters []string) Fate {
	for _, name := range clusters {
		known := c.clusters[name]
		switch {
		case known == nil:
			return Cluster
		case known.Type == "ORIGINAL_DST":
			return Passthrough
		case known.ClusterType == nil && (known.Type == "" || known.Type == "STATIC") && len(known.all()) == 0:
			return BlackHole
		}
	}
	return Cluster
}

func (c *cluster) all() []netip.AddrPort {
	all := slices.Clone(c.endpoints)
	for _, group := range c.LoadAssignment.Endpoints {
		for _, e := range group.Endpoints {
			all = append(all, e.Endpoint.Address.at())
		}
	}
	return all
}

// note adds the services behind clusters and their endpoints.
func (c *Config) note(clusters []string, a *Answer) {
	for _, name := range clusters {
		// istio calls a cluster DIRECTION|PORT|SUBSET|HOST.
		if parts := strings.Split(name, "|"); len(parts) == 4 && parts[3] != "" {
			a.Services = append(a.Services, parts[3]+":"+parts[1])
		}
	}
	c.noteEndpoints(clusters, a)
}

func (c *Config) noteEndpoints(clusters []string, a *Answer) {
	for _, name := range clusters {
		known := c.clusters[name]
		switch {
		case known == nil || known.ClusterType != nil:
			a.Open = true
		case known.Type != "ORIGINAL_DST":
			a.Endpoints = append(a.Endpoints, known.all()...)
		}
	}
}

// mostServices bounds how many services a sentence names.
const mostServices = 3

// String is the answer in one sentence, without a full stop.
func (a Answer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Envoy's listener %s (%s) takes it", a.Listener, a.Address)
	switch n := len(a.Services); {
	case a.Fallback:
		b.WriteString(", as no other has its address or port")
	case n > mostServices:
		fmt.Fprintf(&b, ", made for %s and %d more", strings.Join(a.Services[:mostServices], ", "), n-mostServices)
	case n > 0:
		b.WriteString(", made for " + strings.Join(a.Services, ", "))
	}
	for i, p := range a.Paths {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		b.WriteString(p.describe(len(a.Paths) > 1))
	}
	return b.String()
}

func (p Path) describe(others bool) string {
	subject := "all of it"
	switch {
	case p.Traffic != "":
		subject = p.Traffic
	case others:
		subject = "everything else"
	}
	by := ""
	if p.Chain != "" && p.Fate != HTTP {
		by = " by filter chain " + p.Chain
	}
	switch p.Fate {
	case Closed:
		return subject + " is closed: no filter chain takes it"
	case BlackHole:
		return fmt.Sprintf("%s goes%s to %s, which has no endpoint: Envoy closes it", subject, by, strings.Join(p.Clusters, ", "))
	case Passthrough:
		return fmt.Sprintf("%s goes%s to %s: on to where it was going", subject, by, strings.Join(p.Clusters, ", "))
	case Cluster:
		return fmt.Sprintf("%s goes%s to cluster %s", subject, by, strings.Join(p.Clusters, ", "))
	case HTTP:
	}
	host := "requests to the address itself go to " + strings.Join(p.Clusters, ", ")
	if p.Status != 0 {
		host = fmt.Sprintf("Envoy answers requests to the address itself with %d", p.Status)
	}
	text := fmt.Sprintf("%s goes by routes %s (%s)", subject, p.Routes, host)
	if p.Traffic == "" {
		text += ", and is answered with 400 Bad Request if it is not HTTP"
	}
	return text
}
