package nftables

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

func counterJSON(f *netlink.Fields) object {
	return object{{"packets", number64(f[unix.NFTA_COUNTER_PACKETS])}, {"bytes", number64(f[unix.NFTA_COUNTER_BYTES])}}
}

// stateful adds a statement that leaves its state out if the writer wants that.
func (d *decoder) stateful(name string, full, stateless any) bool {
	return d.add(&statement{write: func(w *writer) any {
		if w.stateless {
			return one(name, stateless)
		}
		return one(name, full)
	}})
}

func (d *decoder) counter(f *netlink.Fields) bool { return d.stateful("counter", counterJSON(f), nil) }

// The flag of limit, quota and connlimit that turns them around.
const inverse = 1

var dataUnits = []string{"bytes", "kbytes", "mbytes"}

// inUnits writes a number of bytes in the largest unit that divides it.
func inUnits(n uint64) (uint64, string) {
	i := 0
	for n != 0 && n%1024 == 0 && i < len(dataUnits)-1 {
		n /= 1024
		i++
	}
	return n, dataUnits[i]
}

const limitBytes = 1 // NFT_LIMIT_PKT_BYTES

func (d *decoder) limit(f *netlink.Fields) bool {
	rate, burst := number64(f[unix.NFTA_LIMIT_RATE]), uint64(f.Number(unix.NFTA_LIMIT_BURST))
	var units object
	if f.Number(unix.NFTA_LIMIT_TYPE) == limitBytes {
		var rateUnit, burstUnit string
		rate, rateUnit = inUnits(rate)
		burst, burstUnit = inUnits(burst)
		units = object{{"rate_unit", rateUnit}, {"burst_unit", burstUnit}}
	}
	out := object{{"rate", rate}, {"burst", burst}, {"per", unitNames.of(uint32(number64(f[unix.NFTA_LIMIT_UNIT])))}}
	if f.Number(unix.NFTA_LIMIT_FLAGS)&inverse != 0 {
		out = out.with("inv", true)
	}
	return d.say(one("limit", append(out, units...)))
}

func (d *decoder) quota(f *netlink.Fields) bool {
	bytes, unit := inUnits(number64(f[unix.NFTA_QUOTA_BYTES]))
	out := object{{"val", bytes}, {"val_unit", unit}}
	if f.Number(unix.NFTA_QUOTA_FLAGS)&inverse != 0 {
		out = out.with("inv", true)
	}
	full := out
	if used := number64(f[unix.NFTA_QUOTA_CONSUMED]); used != 0 {
		n, unit := inUnits(used)
		full = slices.Concat(out, object{{"used", n}, {"used_unit", unit}})
	}
	return d.stateful("quota", full, out)
}

// What golang.org/x/sys lacks of connlimit, last, log, queue, synproxy, flow_offload and objref.
const (
	connlimitCount = 1
	connlimitFlags = 2

	lastSet   = 1
	lastMsecs = 2

	levelWarning = 4

	queueNumber   = 1
	queueTotal    = 2
	queueFlag     = 3
	queueRegister = 4

	synproxyMSS        = 1
	synproxyWscale     = 2
	synproxyFlags      = 3
	synproxyHasMSS     = 1 << 0
	synproxyHasWscale  = 1 << 1
	flowTable          = 1
	objrefType         = 1
	objrefName         = 2
	objrefSetRegister  = 3
	objrefSetName      = 4
	xtName             = 1
	logFlagAll         = 0x2f
	natTypeNetmap      = 1 << 6
	natFlagsOfNoEffect = 3 // NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
)

// synproxyList has nft's order.
func synproxyList(bits uint32) []any {
	return append(words([]string{"", "", "", "timestamp"}, bits), words([]string{"", "", "sack-perm"}, bits)...)
}

func (d *decoder) connlimit(f *netlink.Fields) bool {
	out := one("val", f.Number(connlimitCount))
	if f.Number(connlimitFlags)&inverse != 0 {
		out = out.with("inv", true)
	}
	return d.say(one("ct count", out))
}

func (d *decoder) last(f *netlink.Fields) bool {
	var used any
	if f.Number(lastSet) != 0 {
		used = one("used", number64(f[lastMsecs]))
	}
	return d.stateful("last", used, nil)
}

func (d *decoder) log(f *netlink.Fields) bool {
	var out object
	if f[unix.NFTA_LOG_PREFIX] != nil {
		out = out.with("prefix", f.Text(unix.NFTA_LOG_PREFIX))
	}
	if group := f[unix.NFTA_LOG_GROUP]; group != nil {
		out = out.with("group", number16(group))
	}
	if f[unix.NFTA_LOG_SNAPLEN] != nil {
		out = out.with("snaplen", f.Number(unix.NFTA_LOG_SNAPLEN))
	}
	if threshold := f[unix.NFTA_LOG_QTHRESHOLD]; threshold != nil {
		out = out.with("queue-threshold", number16(threshold))
	}
	if level := f.Number(unix.NFTA_LOG_LEVEL); f[unix.NFTA_LOG_LEVEL] != nil && level != levelWarning {
		out = out.with("level", levelNames.of(level))
	}
	list := words(logFlags, f.Number(unix.NFTA_LOG_FLAGS))
	if f.Number(unix.NFTA_LOG_FLAGS)&logFlagAll == logFlagAll {
		list = []any{"all"}
	}
	return d.say(one("log", out.withSome("flags", list).orNull()))
}

func (d *decoder) notrack(*netlink.Fields) bool { return d.say(one("notrack", nil)) }

func (d *decoder) reject(f *netlink.Fields) bool {
	kind, number := f.Number(unix.NFTA_REJECT_TYPE), byte(number8(f[unix.NFTA_REJECT_ICMP_CODE]))
	var out object
	return d.add(&statement{
		resolve: func(c *context) { out = c.reject(kind, number) },
		write:   func(*writer) any { return one("reject", out.orNull()) },
	})
}

func (c *context) reject(kind uint32, number byte) object {
	family := c.family
	switch family {
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		if kind == unix.NFT_REJECT_TCP_RST {
			c.release(transport)
		}
	default:
		family = c.networkFamily()
	}
	as := func(name string, t *datatype) object {
		return object{{"type", name}, {"expr", c.w.write(t.form(), []byte{number}, true)}}
	}
	switch kind {
	case unix.NFT_REJECT_TCP_RST:
		return one("type", "tcp reset")
	case unix.NFT_REJECT_ICMPX_UNREACH:
		return as("icmpx", typeICMPX)
	}
	if c.family != family {
		c.release(network)
	}
	switch family {
	case unix.NFPROTO_IPV4:
		return as("icmp", typeICMPCode)
	case unix.NFPROTO_IPV6:
		return as("icmpv6", typeICMP6Code)
	}
	return nil
}

// networkFamily is the family that the matches have restricted the rule to.
func (c *context) networkFamily() byte {
	switch c.headers[network] {
	case ipHeader:
		return unix.NFPROTO_IPV4
	case ip6Header:
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_UNSPEC
}

func (d *decoder) queue(f *netlink.Fields) bool {
	first, total := number16(f[queueNumber]), number16(f[queueTotal])
	list := words(queueFlags, number16(f[queueFlag]))
	if f[queueRegister] != nil {
		from := d.operand(f, queueRegister)
		return d.add(&statement{
			resolve: func(c *context) { from = c.resolve(from) },
			write:   func(w *writer) any { return one("queue", one("num", w.as(numberForm, from)).withSome("flags", list)) },
		})
	}
	var number any = first
	if total > 1 {
		number = one("range", []any{first, first + total - 1})
	}
	return d.say(one("queue", one("num", number).withSome("flags", list)))
}

func (d *decoder) synproxy(f *netlink.Fields) bool {
	bits := f.Number(synproxyFlags)
	var out object
	if bits&synproxyHasMSS != 0 {
		out = out.with("mss", number16(f[synproxyMSS]))
	}
	if bits&synproxyHasWscale != 0 {
		out = out.with("wscale", number8(f[synproxyWscale]))
	}
	if list := synproxyList(bits); len(list) > 0 {
		out = out.with("flags", list)
	}
	return d.say(one("synproxy", out.orNull()))
}

func (d *decoder) flow(f *netlink.Fields) bool {
	return d.say(one("flow", object{{"op", "add"}, {"flowtable", "@" + f.Text(flowTable)}}))
}

func (d *decoder) objref(f *netlink.Fields) bool {
	if f[objrefName] != nil {
		name, known := objectNames[uint64(f.Number(objrefType))]
		return known && d.say(one(name, f.Text(objrefName)))
	}
	in := d.w.lookup(d.table, f.Text(objrefSetName))
	if in == nil || len(in.data) == 0 {
		return false
	}
	m := &mapped{d.wide(f, objrefSetRegister, in.keyBits()), &reference{set: in}}
	return d.add(&statement{
		resolve: func(c *context) { c.resolve(m) },
		write:   func(w *writer) any { return one(objectNames.of(in.objects), m.json(w)) },
	})
}

func (d *decoder) xtMatch(f *netlink.Fields) bool  { return d.xt("match", f) }
func (d *decoder) xtTarget(f *netlink.Fields) bool { return d.xt("target", f) }

// xt is an extension of iptables. What it does is in its binary data.
func (d *decoder) xt(kind string, f *netlink.Fields) bool {
	return d.say(one("xt", object{{"type", kind}, {"name", f.Text(xtName)}}))
}
