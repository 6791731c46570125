package verify

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/podns"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/sockets"
)

// checks are those of one pod, and what they need to know.
type checks struct {
	*Pod
	*run
	at podns.Pod
	ns *netns.Pod

	conf    netconf.Conf
	decided bool     // what follows is known
	object  *pod.Pod // nil for a namespace that is excluded
	wants   decision.Decision
	refusal error

	dialect   mesh.Dialect
	proxy     redirect.Proxy
	addresses []netip.Addr // in the namespace, of no loopback interface
	sockets   []sockets.Socket
	processes []process
}

// What to do, where several findings have the same answer.
const (
	restart    = "restart the pod to apply it"
	recreate   = "recreate the pod"
	giveSource = "see whether detour-agent runs on this node, or give the pod and its mesh's configuration by --manifests"
	beRoot     = "run this as root, with the node's processes in sight"
)

func (c *checks) all(ctx context.Context) {
	if err := c.ns.Do(c.readAddresses); err != nil {
		c.unknown(FamilyBypass, beRoot, "%v", err)
	}
	if err := c.ask(ctx); err != nil {
		c.unknown(ConfigUnknown, giveSource, "what the mesh wants of the pod today is not known: %v", err)
	}
	record := c.at.Record
	switch {
	case record == nil:
		c.neverAdded()
	case record.Outcome == attachment.Skipped:
		c.leftAlone(record.Reason)
	case record.Outcome == attachment.Allowed:
		c.finding(Unmeshed, "correct that, and "+recreate,
			"the pod runs without redirection, as onError is allow and detour could not program it: %s", record.Reason)
	default:
		c.programmed(ctx, *record)
	}
}

func (c *checks) readAddresses() error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, link := range links {
		own, err := link.Addrs()
		if err != nil {
			return err
		}
		for _, a := range own {
			prefix, err := netip.ParsePrefix(a.String())
			if err == nil && link.Flags&net.FlagLoopback == 0 && prefix.Addr().IsGlobalUnicast() {
				c.addresses = append(c.addresses, prefix.Addr())
			}
		}
	}
	return nil
}

// ask finds out what the mesh wants of the pod today.
func (c *checks) ask(ctx context.Context) (err error) {
	if c.conf, err = c.source.confOf(c.at.Record); err != nil {
		return err
	}
	id := c.at.ID
	if c.source.manifests != "" {
		id.UID = "" // a manifest usually has none
	}
	in := decision.Input{ID: id, Addresses: c.added()}
	if c.conf.Excluded(id.Namespace) == "" {
		objects, err := c.source.lookup(ctx, c.conf, id)
		if err != nil {
			return err
		}
		object, err := pod.Parse(objects.Pod)
		if err != nil {
			return err
		}
		if id.UID != "" && !object.HasUID(id.UID) {
			return fmt.Errorf("the pod of this name has UID %s at the API server", object.UID)
		}
		c.object = &object
		in.Pod, in.Config, in.ConfigAbsent = objects.Pod, objects.Config, objects.ConfigAbsent
	}
	c.wants, c.refusal = c.conf.Decide(in)
	c.decided, c.Warnings = true, c.wants.Warnings
	return nil
}

// added returns the addresses by which ADD decided: those of all attachments, in the order of their ADDs. Where no record has
// any, they are those in the namespace.
func (c *checks) added() []netip.Addr {
	if c.at.Record == nil {
		return c.addresses
	}
	same := slices.DeleteFunc(slices.Clone(c.records), func(r attachment.Record) bool {
		return r.Netns != c.at.Record.Netns || r.NamespaceID != c.at.Record.NamespaceID
	})
	if all := attachment.Addresses(same); all != nil {
		return all
	}
	return c.addresses
}

// neverAdded is for a pod that detour's ADD has not seen.
func (c *checks) neverAdded() {
	switch {
	case !c.decided:
	case c.refusal != nil:
		c.refused()
	case c.wants.Skip != "":
		c.Reason = c.wants.Skip
	default:
		c.finding(NotCalled, recreate, "the mesh wants the pod, but detour was not called for it: "+
			"it was started before detour was installed, or while detour was not in the network's configuration")
	}
}

// leftAlone is for a pod that ADD left alone.
func (c *checks) leftAlone(reason string) {
	c.Reason = reason
	switch {
	case !c.decided:
	case c.refusal != nil:
		c.refused()
	case c.wants.Skip == "":
		c.finding(Wanted, restart, "detour left the pod alone when it started (%s), but the mesh wants it today", reason)
	}
}

func (c *checks) refused() {
	c.finding(Refused, "correct that: the pod would not start again", "%v", c.refusal)
}

// programmed is for a pod that ADD or the node agent has programmed.
func (c *checks) programmed(ctx context.Context, record attachment.Record) {
	c.Mesh, c.Backend, c.Rules = record.Mesh, record.Backend, backend.RuleCount(record)
	c.dialect, _ = mesh.Find(record.Mesh)
	if c.conf.Dialect.Name == record.Mesh { // it may override the row
		c.dialect = c.conf.Dialect
	}
	c.proxy = c.dialect.Proxy
	if c.wants.Policy != nil {
		c.proxy = c.wants.Policy.Sidecar()
	}
	c.rules(ctx, record)
	c.drift(record)
	c.families(record)
	c.ready()
	if c.look() {
		c.listeners(record)
		c.ports()
		c.owners()
	}
}

// look reads sockets and processes.
func (c *checks) look() bool {
	err := c.ns.Do(func() (err error) {
		c.sockets, err = sockets.List(sockets.Waiting)
		return err
	})
	if err != nil {
		c.unknown(SocketsUnknown, beRoot, "what listens in the pod is not known: %v", err)
		return false
	}
	var seen bool
	if c.processes, seen = processes(c.proc, c.at.PIDs); !seen {
		c.unknown(OwnersUnknown, beRoot, "not all of the pod's processes can be looked at")
	}
	return true
}

// families finds addresses of a family that is not redirected.
func (c *checks) families(record attachment.Record) {
	for _, f := range missing(rules.FamiliesOf(c.addresses), record.Families) {
		do := "have the mesh redirect " + f.String() + ", too (istio: ISTIO_DUAL_STACK=true), or accept it"
		if c.decided && slices.Contains(c.wants.Families, f) {
			do = restart
		}
		c.finding(FamilyBypass, do, "the pod has the %s address %s, but only %s is redirected: what it does over %s bypasses the proxy",
			f, firstOf(f, c.addresses), join(record.Families), f)
	}
}
