package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// chain is a chain, and what its hook is if it is a base chain.
func (t *table) chain(f *netlink.Fields) object {
	out := t.head("name", f.Text(unix.NFTA_CHAIN_NAME), f[unix.NFTA_CHAIN_HANDLE])
	if f[unix.NFTA_CHAIN_HOOK] != nil {
		at := netlink.Parse(f[unix.NFTA_CHAIN_HOOK])
		out = append(out, object{
			{"type", f.Text(unix.NFTA_CHAIN_TYPE)}, {"hook", t.hook(at.Number(unix.NFTA_HOOK_HOOKNUM))},
			{"prio", int(int32(at.Number(unix.NFTA_HOOK_PRIORITY)))}, {"policy", policyNames.of(f.Number(unix.NFTA_CHAIN_POLICY))},
		}...)
		out = out.withSome("dev", devices(at[unix.NFTA_HOOK_DEV], at[hookDevices]))
	}
	return one("chain", out)
}

const (
	hookDevices = 4
	commentKey  = "comment"

	flowtableName      = 2
	flowtableHook      = 3
	flowtableHandle    = 5
	flowtableHookNum   = 1
	flowtablePriority  = 2
	flowtableDevices   = 3
	objectName         = 2
	objectType         = 3
	objectData         = 4
	objectHandle       = 6
	objectUserdata     = 8
	typeCounterObject  = 1
	typeQuotaObject    = 2
	typeHelperObject   = 3
	typeLimitObject    = 4
	typeTimeoutObject  = 7
	typeSecmarkObject  = 8
	typeExpectObject   = 9
	typeSynproxyObject = 10
)

func devices(single, list []byte) (names []any) {
	if single != nil {
		return []any{textOf(single)}
	}
	for a := range netlink.Attributes(list) {
		names = append(names, textOf(a.Data))
	}
	return names
}

func (t *table) hook(number uint32) string {
	switch t.family {
	case unix.NFPROTO_ARP:
		return arpHooks.of(number)
	case unix.NFPROTO_NETDEV:
		return netdevHooks.of(number)
	}
	return inetHooks.of(number)
}

// head is what all objects of a table begin with.
func (t *table) head(nameKey, name string, handle []byte) object {
	return object{{"family", t.familyName()}, {"table", t.name}, {nameKey, name}, {"handle", number64(handle)}}
}

func (t *table) familyName() string { return familyNames.of(uint32(t.family)) }

func (t *table) json() object {
	out := object{{"family", t.familyName()}, {"name", t.name}, {"handle", t.handle}}
	return one("table", out.withSome("flags", words(tableFlags, t.flags)))
}

func (t *table) flowtable(f *netlink.Fields) object {
	at := netlink.Parse(f[flowtableHook])
	out := t.head("name", f.Text(flowtableName), f[flowtableHandle])
	out = append(out, object{
		{"hook", netdevHooks.of(at.Number(flowtableHookNum))}, {"prio", int(int32(at.Number(flowtablePriority)))},
	}...)
	return one("flowtable", out.withSome("dev", devices(nil, at[flowtableDevices])))
}

// object is a counter, a quota or another named object.
func (t *table) object(f *netlink.Fields) object {
	out := t.head("name", f.Text(objectName), f[objectHandle])
	if c := comment(f[objectUserdata]); c != "" {
		out = out.with(commentKey, c)
	}
	kind := f.Number(objectType)
	data := netlink.Parse(f[objectData])
	if fill := objectFillers[kind]; fill != nil {
		out = append(out, fill(&data)...)
	}
	return one(objectNames.of(kind), out)
}

// objectFillers write what an object of a type has.
var objectFillers = map[uint32]func(*netlink.Fields) object{
	typeCounterObject: counterJSON,
	typeQuotaObject: func(f *netlink.Fields) object {
		return object{
			{"bytes", number64(f[unix.NFTA_QUOTA_BYTES])}, {"used", number64(f[unix.NFTA_QUOTA_CONSUMED])},
			{"inv", f.Number(unix.NFTA_QUOTA_FLAGS)&inverse != 0},
		}
	},
	typeHelperObject: func(f *netlink.Fields) object {
		return object{{"type", f.Text(1)}, {"protocol", protocolJSON(f[3])}, {"l3proto", familyNames.of(number16(f[2]))}}
	},
	typeLimitObject:   limitObject,
	typeTimeoutObject: timeoutObject,
	typeSecmarkObject: func(f *netlink.Fields) object { return one("context", f.Text(1)) },
	typeExpectObject: func(f *netlink.Fields) object {
		return object{
			{"protocol", protocolJSON(f[2])}, {"dport", number16(f[3])}, {"timeout", native(f[4])}, {"size", number8(f[5])},
			{"l3proto", familyNames.of(number16(f[1]))},
		}
	},
	typeSynproxyObject: func(f *netlink.Fields) object {
		out := object{{"mss", number16(f[synproxyMSS])}, {"wscale", number8(f[synproxyWscale])}}
		if list := synproxyList(f.Number(synproxyFlags)); len(list) > 0 {
			out = out.with("flags", list)
		}
		return out
	},
}

// native is a number in the machine's byte order, which only this attribute has.
func native(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func protocolJSON(b []byte) any {
	n := uint64(number8(b))
	if name, ok := protocolNames[n]; ok {
		return name
	}
	return n
}

func limitObject(f *netlink.Fields) object {
	rate, burst := number64(f[unix.NFTA_LIMIT_RATE]), uint64(f.Number(unix.NFTA_LIMIT_BURST))
	rateUnit, burstUnit := "", ""
	if f.Number(unix.NFTA_LIMIT_TYPE) == limitBytes {
		rate, rateUnit = inUnits(rate)
		burst, burstUnit = inUnits(burst)
	}
	out := object{{"rate", rate}, {"per", unitNames.of(uint32(number64(f[unix.NFTA_LIMIT_UNIT])))}}
	if f.Number(unix.NFTA_LIMIT_FLAGS)&inverse != 0 {
		out = out.with("inv", true)
	}
	if rateUnit != "" {
		out = out.with("rate_unit", rateUnit)
	}
	if burst == 0 {
		return out
	}
	out = out.with("burst", burst)
	if burstUnit != "" {
		out = out.with("burst_unit", burstUnit)
	}
	return out
}

// timeouts are the states of a protocol's connections, with the kernel's defaults in seconds, which nft leaves out.
type timeouts struct {
	state   string
	seconds uint32
}

var (
	tcpTimeouts = []timeouts{
		{"syn_sent", 120}, {"syn_recv", 60}, {"established", 432000}, {"fin_wait", 120}, {"close_wait", 60}, {"last_ack", 30},
		{"time_wait", 120}, {"close", 10}, {"syn_sent2", 120}, {"retrans", 300}, {"unack", 300},
	}
	udpTimeouts = []timeouts{{"unreplied", 30}, {"replied", 120}}
)

func timeoutObject(f *netlink.Fields) object {
	known := map[uint32][]timeouts{unix.IPPROTO_TCP: tcpTimeouts, unix.IPPROTO_UDP: udpTimeouts}[number8(f[2])]
	data := netlink.Parse(f[3])
	var policy object
	for i, t := range known {
		if seconds := data.Number(i + 1); data[i+1] != nil && seconds != t.seconds {
			policy = policy.with(t.state, seconds)
		}
	}
	return object{{"protocol", protocolJSON(f[2])}, {"l3proto", familyNames.of(number16(f[1]))}, {"policy", policy.orNull()}}
}
