package redirect

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Asked is what a configuration, an annotation or a container asks for, or how the proxy is set up.
type Asked struct {
	// What is the kind of value, such as "excluded outbound port".
	What string `json:"what"`
	// Where is the annotation, field or container that asks for it. It is empty for a setting, which has one value.
	Where  string   `json:"where,omitempty"`
	Values []string `json:"values"`
}

// AskedOf lists what a policy is made of, in an order that depends on the policy alone. Two policies with the same list have the
// same rules but for the order of what a list excludes or includes.
func AskedOf(p Policy) []Asked {
	var a askedList
	switch p := p.(type) {
	case OSM:
		a.osm(p)
	case Istio:
		a.istio(p)
	default:
		a.setting("policy", fmt.Sprintf("%+v", p))
	}
	return a
}

type askedList []Asked

func (a *askedList) osm(p OSM) {
	a.proxy(p.Proxy, p.LocalDNS.IsValid())
	a.setting("chains", fmt.Sprint(p.Chains))
	a.ranges("excluded outbound range", p.Outbound.ExcludeRanges)
	a.ranges("included outbound range", p.Outbound.IncludeRanges)
	a.ports("excluded outbound port", p.Outbound.ExcludePorts)
	a.interfaces("interface excluded outbound", p.Outbound.ExcludeInterfaces)
	a.users(p.Outbound.ExcludeUsers)
	a.ports("excluded inbound port", p.Inbound.ExcludePorts)
	a.interfaces("interface excluded inbound", p.Inbound.ExcludeInterfaces)
	a.setting("proxy's own inbound ports", fmt.Sprint(p.Inbound.ProxyPorts))
	a.setting("calls of the pod's own service through the proxy", onOff(p.SelfCalls))
	a.setting("address by which the proxy reaches the application", text(p.PodIPs))
	a.setting("wait for the proxy's first packet", onOff(p.Gated))
}

func (a *askedList) istio(p Istio) {
	a.proxy(p.Proxy, p.DNSCapture)
	a.setting("interception by TPROXY", onOff(p.TProxy))
	a.setting("outbound redirection of all ranges", onOff(p.Outbound.All))
	a.ranges("included outbound range", p.Outbound.IncludeRanges)
	a.ranges("excluded outbound range", p.Outbound.ExcludeRanges)
	a.ports("included outbound port", p.Outbound.IncludePorts)
	a.ports("excluded outbound port", p.Outbound.ExcludePorts)
	a.users(p.Outbound.ExcludeUsers)
	a.setting("inbound redirection of all ports", onOff(p.Inbound.All))
	a.ports("included inbound port", p.Inbound.IncludePorts)
	a.ports("excluded inbound port", p.Inbound.ExcludePorts)
	a.interfaces("excluded interface", p.ExcludeInterfaces)
	a.interfaces("virtual interface", p.VirtualInterfaces)
	a.setting("drop of invalid packets", onOff(p.DropInvalid))
	a.setting("wait for the proxy's first packet", onOff(p.Gated))
}

func (a *askedList) proxy(p Proxy, dns bool) {
	a.setting("proxy's user", strconv.FormatUint(uint64(p.UID), 10))
	a.setting("proxy's group", strconv.FormatUint(uint64(p.GID), 10))
	a.setting("inbound listener", strconv.Itoa(int(p.Inbound)))
	a.setting("outbound listener", strconv.Itoa(int(p.Outbound)))
	a.setting("admin port", strconv.Itoa(int(p.Admin)))
	a.setting("tunnel port", strconv.Itoa(int(p.Tunnel)))
	a.setting("DNS listener", strconv.Itoa(int(p.DNS)))
	a.setting("redirection of DNS queries", onOff(dns))
}

func (a *askedList) setting(what, value string) {
	*a = append(*a, Asked{What: what, Values: []string{value}})
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func text(addresses []netip.Addr) string {
	if len(addresses) == 0 {
		return "localhost"
	}
	return fmt.Sprint(addresses)
}

func (a *askedList) value(what, where, value string) {
	for i := len(*a) - 1; i >= 0 && (*a)[i].What == what; i-- {
		if (*a)[i].Where == where {
			(*a)[i].Values = append((*a)[i].Values, value)
			return
		}
	}
	*a = append(*a, Asked{what, where, []string{value}})
}

func (a *askedList) ranges(what string, list []Range) {
	for _, r := range list {
		a.value(what, r.Origin, r.Prefix.String())
	}
}

func (a *askedList) ports(what string, list []Port) {
	for _, p := range list {
		a.value(what, p.Origin, strconv.Itoa(int(p.Number)))
	}
}

func (a *askedList) interfaces(what string, list []Interface) {
	for _, i := range list {
		a.value(what, i.Origin, i.Name)
	}
}

func (a *askedList) users(list []User) {
	for _, u := range list {
		a.value("user that goes direct", u.Origin, "UID "+strconv.FormatUint(uint64(u.UID), 10))
	}
}
