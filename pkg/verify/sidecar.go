package verify

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/sockets"
)

// ready finds out whether the sidecar is there and ready.
func (c *checks) ready() {
	if c.object == nil {
		return // said already
	}
	container, ok := c.object.Find(c.dialect.Sidecar)
	state := container.State
	switch {
	case !ok:
		c.finding(NotReady, "inject the sidecar again", "the pod has no container %q", c.dialect.Sidecar)
	case state == nil:
		c.unknown(NotReady, "ask the agent or the API server, which have the pod's status",
			"whether container %q is ready is not known: the pod has no status", c.dialect.Sidecar)
	case !state.Ready:
		why := ""
		if state.Why != "" {
			why = fmt.Sprintf(": %s, restarted %d times", state.Why, state.Restarts)
		}
		c.finding(NotReady, c.logs(), "container %q is not ready%s", c.dialect.Sidecar, why)
	}
}

func (c *checks) logs() string {
	return fmt.Sprintf("kubectl -n %s logs %s -c %s", c.at.ID.Namespace, c.at.ID.Name, c.dialect.Sidecar)
}

// target is where rules redirect to.
type target struct {
	port     uint16
	protocol byte
}

// targets finds the ports in lines of rules as either backend prints them. TPROXY shares its port with a redirection.
var targets = regexp.MustCompile(`(?:--to-ports |redirect to :|--to-destination [0-9.]+:|dnat (ip) to [0-9.]+:)(\d+)`)

// redirects returns where the programmed rules redirect to in each family.
func redirects(record attachment.Record) map[target][]rules.Family {
	all := map[target][]rules.Family{}
	for _, line := range backend.Lines(record) {
		found := targets.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		port, err := strconv.ParseUint(found[2], 10, 16)
		if err != nil {
			continue
		}
		to := target{uint16(port), unix.IPPROTO_TCP}
		if strings.Contains(line, "udp") {
			to.protocol = unix.IPPROTO_UDP
		}
		for _, f := range record.Families {
			other := strings.HasPrefix(line, "IPv") && !strings.HasPrefix(line, f.String()) || found[1] != "" && f != rules.IPv4
			if !other && !slices.Contains(all[to], f) {
				all[to] = append(all[to], f)
			}
		}
	}
	return all
}

// listeners finds redirections to a port where nothing listens, and a sidecar that is redirected to itself.
func (c *checks) listeners(record attachment.Record) {
	all := redirects(record)
	byPort := func(a, b target) int { return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol)) }
	for _, to := range slices.SortedFunc(maps.Keys(all), byPort) {
		silent := slices.DeleteFunc(slices.Clone(all[to]), func(f rules.Family) bool {
			return slices.ContainsFunc(c.sockets, func(s sockets.Socket) bool { return c.accepts(s, to, f) })
		})
		if len(silent) > 0 {
			c.finding(NotListening, c.listenAdvice(silent, all[to]), "nothing listens on %s%s over %s, where %s are redirected to",
				portOf(to), c.use(to.port), join(silent), c.what(to))
		}
	}
	for _, s := range c.sockets {
		p, ok := listening(c.processes, s)
		if ok && s.Protocol == unix.IPPROTO_TCP && s.Local.Port() == c.proxy.Outbound && c.isSidecar(p) && !c.runsAsProxy(p) {
			do := fmt.Sprintf("have container %q run as UID %d, or set proxy.uid in the net conf", c.dialect.Sidecar, c.proxy.UID)
			c.finding(SidecarUser, do,
				"the sidecar's %s runs as UID %d, not %d: its own connections are redirected back to it", p, p.UID, c.proxy.UID)
			return
		}
	}
}

// accepts reports whether the socket gets what rules redirect to the port: the pod's own connections arrive at localhost, others
// at the pod's address.
func (c *checks) accepts(s sockets.Socket, to target, f rules.Family) bool {
	own := s.Local.Addr()
	switch {
	case s.Protocol != to.protocol || s.Local.Port() != to.port:
		return false
	case own.IsUnspecified():
		return rules.Of(own) == f || own.Is6() && !s.OnlyIPv6
	case rules.Of(own) != f:
		return false
	case to.port == c.proxy.Inbound:
		return !own.IsLoopback()
	}
	return own.IsLoopback()
}

func (c *checks) listenAdvice(silent, wanted []rules.Family) string {
	if len(silent) < len(wanted) {
		return fmt.Sprintf("have the proxy listen on %s, too", join(silent))
	}
	return c.logs()
}

func portOf(to target) string {
	if to.protocol == unix.IPPROTO_UDP {
		return fmt.Sprintf("UDP port %d", to.port)
	}
	return fmt.Sprintf("port %d", to.port)
}

// use says what the proxy uses the port for, "" if the configuration has moved that elsewhere.
func (c *checks) use(port uint16) string {
	use := c.dialect.Reserved(c.proxy)[port]
	if port == c.proxy.DNS {
		use = "DNS listener"
	}
	if use == "" {
		return ""
	}
	return " of the proxy's " + use
}

func (c *checks) what(to target) string {
	switch to.port {
	case c.proxy.Inbound:
		return "connections to the pod"
	case c.proxy.DNS:
		return "DNS queries"
	}
	return "the pod's own connections"
}

// container returns the name of the process's container, "" if that is unknown.
func (c *checks) container(p process) string {
	if c.object == nil || p.container == "" {
		return ""
	}
	for _, list := range [][]pod.Container{c.object.InitContainers, c.object.Containers} {
		for _, container := range list {
			if container.State != nil && strings.HasSuffix(container.State.ID, "://"+p.container) {
				return container.Name
			}
		}
	}
	return ""
}

// isSidecar reports whether the mesh has injected the process's container. Where that is unknown, the user tells.
func (c *checks) isSidecar(p process) bool {
	if name := c.container(p); name != "" {
		return c.dialect.Injected(name)
	}
	return c.runsAsProxy(p)
}

// runsAsProxy reports whether the rules take the process for the proxy.
func (c *checks) runsAsProxy(p process) bool {
	return p.UID == c.proxy.UID || c.proxy.GID != 0 && p.GID == c.proxy.GID
}
