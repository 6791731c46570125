package verify

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// ports finds processes of the application that listen on the proxy's ports.
func (c *checks) ports() {
	reserved := c.dialect.Reserved(c.proxy)
	seen := map[string]bool{}
	for _, s := range c.sockets {
		use := reserved[s.Local.Port()]
		if s.Protocol != unix.IPPROTO_TCP || use == "" {
			continue
		}
		who := fmt.Sprintf("a process of UID %d", s.UID)
		p, ok := listening(c.processes, s)
		if ok {
			who = c.named(p)
		}
		if ok && c.isSidecar(p) || !ok && s.UID == c.proxy.UID || c.mayBeHelper(p, s.Local.Port()) {
			continue
		}
		text := fmt.Sprintf("%s listens on port %d, which is the proxy's (%s)", who, s.Local.Port(), use)
		if !seen[text] { // in the other family
			c.finding(PortTaken, "give the application another port", "%s", text)
		}
		seen[text] = true
	}
}

// mayBeHelper reports whether the process could be in a container that the mesh has injected beside its sidecar, as far as is
// known. The proxy's user does not tell it.
func (c *checks) mayBeHelper(p process, port uint16) bool {
	return len(c.dialect.Helpers) > 0 && c.container(p) == "" && slices.Contains(c.dialect.ProxyPorts, port)
}

// named names a process and its container.
func (c *checks) named(p process) string {
	switch name := c.container(p); {
	case name != "":
		return fmt.Sprintf("%s of container %q", p, name)
	case p.container != "":
		return fmt.Sprintf("%s of container %s", p, p.container[:12])
	}
	return p.String()
}

// owners finds processes of the application that run as the proxy's user or group. Which container is the sidecar, the pod's
// status says, or else who listens for redirected connections.
func (c *checks) owners() {
	sidecar := c.sidecarsContainer()
	for _, p := range c.processes {
		name := c.container(p)
		switch {
		case !c.runsAsProxy(p), p.Name == "pause", c.dialect.Injected(name), sidecar != "" && p.container == sidecar:
		case name == "" && (sidecar == "" || p.container == ""): // it may be the sidecar
		default:
			what, id := "UID", p.UID
			if p.UID != c.proxy.UID {
				what, id = "GID", p.GID
			}
			c.finding(ProxyUser, "give the container another user and group",
				"%s runs as %s %d, which is the proxy's: its connections bypass the proxy", c.named(p), what, id)
		}
	}
}

// sidecarsContainer is the ID of the container that listens on the proxy's outbound port as the proxy's user, "" if none does.
func (c *checks) sidecarsContainer() string {
	for _, s := range c.sockets {
		if p, ok := listening(c.processes, s); ok && s.Local.Port() == c.proxy.Outbound && c.runsAsProxy(p) {
			return p.container
		}
	}
	return ""
}
