package nftables

import "golang.org/x/sys/unix"

// key is what meta, ct, rt, socket or xfrm load.
type key struct {
	name string
	form
	family string // that the address belongs to; "" for other keys
}

func ofHost(name string, t *datatype, bits int) key {
	return key{name: name, form: form{t, bits, true}}
}

func ofNetwork(name string, t *datatype, bits int) key {
	return key{name: name, form: form{t, bits, false}}
}

func (k key) of(family string) key {
	k.family = family
	return k
}

var metaKeys = map[uint32]key{
	unix.NFT_META_LEN: ofHost("length", typeInteger, 32), unix.NFT_META_PROTOCOL: ofNetwork("protocol", typeEtherType, 16),
	unix.NFT_META_PRIORITY: ofHost("priority", typeClass, 32), unix.NFT_META_MARK: ofHost("mark", typeMark, 32),
	unix.NFT_META_IIF: ofHost("iif", typeIfindex, 32), unix.NFT_META_OIF: ofHost("oif", typeIfindex, 32),
	unix.NFT_META_IIFNAME: ofHost("iifname", typeIfname, 128), unix.NFT_META_OIFNAME: ofHost("oifname", typeIfname, 128),
	unix.NFT_META_IIFTYPE: ofHost("iiftype", typeLinkType, 16), unix.NFT_META_OIFTYPE: ofHost("oiftype", typeLinkType, 16),
	unix.NFT_META_SKUID: ofHost("skuid", typeUID, 32), unix.NFT_META_SKGID: ofHost("skgid", typeGID, 32),
	unix.NFT_META_NFTRACE: ofHost("nftrace", typeInteger, 8), unix.NFT_META_RTCLASSID: ofHost("rtclassid", typeRealm, 32),
	unix.NFT_META_SECMARK: ofHost("secmark", typeInteger, 32), unix.NFT_META_NFPROTO: ofHost("nfproto", typeNfproto, 8),
	unix.NFT_META_L4PROTO: ofHost("l4proto", typeProtocol, 8), unix.NFT_META_BRI_IIFNAME: ofHost("ibrname", typeIfname, 128),
	unix.NFT_META_BRI_OIFNAME: ofHost("obrname", typeIfname, 128), unix.NFT_META_PKTTYPE: ofHost("pkttype", typePktType, 8),
	unix.NFT_META_CPU: ofHost("cpu", typeInteger, 32), unix.NFT_META_IIFGROUP: ofHost("iifgroup", typeGroup, 32),
	unix.NFT_META_OIFGROUP: ofHost("oifgroup", typeGroup, 32), unix.NFT_META_CGROUP: ofHost("cgroup", typeInteger, 32),
	unix.NFT_META_PRANDOM: ofNetwork("random", typeInteger, 32), 25: ofHost("ipsec", typeBoolean, 8),
	26: ofHost("iifkind", typeIfname, 128), 27: ofHost("oifkind", typeIfname, 128), 28: ofHost("ibrpvid", typeInteger, 16),
	29: ofNetwork("ibrvproto", typeEtherType, 16), 30: ofHost("time", typeDate, 64), 31: ofHost("day", typeDay, 8),
	32: ofHost("hour", typeHour, 32), 33: ofHost("sdif", typeIfindex, 32), 34: ofHost("sdifname", typeIfname, 128),
	35: ofNetwork("broute", typeInteger, 8), 37: ofNetwork("ibrhwaddr", typeEther, 48),
}

var ctKeys = map[uint32]key{
	unix.NFT_CT_STATE: ofHost("state", typeState, 32), unix.NFT_CT_DIRECTION: ofHost("direction", typeDir, 8),
	unix.NFT_CT_STATUS: ofHost("status", typeStatus, 32), unix.NFT_CT_MARK: ofHost("mark", typeMark, 32),
	unix.NFT_CT_SECMARK: ofHost("secmark", typeInteger, 32), unix.NFT_CT_EXPIRATION: ofHost("expiration", typeTime, 32),
	unix.NFT_CT_HELPER: ofHost("helper", typeString, 128), unix.NFT_CT_L3PROTOCOL: ofHost("l3proto", typeNfproto, 8),
	unix.NFT_CT_SRC: ofNetwork("saddr", typeInteger, 0), unix.NFT_CT_DST: ofNetwork("daddr", typeInteger, 0),
	unix.NFT_CT_PROTOCOL: ofNetwork("protocol", typeProtocol, 8), unix.NFT_CT_PROTO_SRC: ofNetwork("proto-src", typePort, 16),
	unix.NFT_CT_PROTO_DST: ofNetwork("proto-dst", typePort, 16), unix.NFT_CT_LABELS: ofHost("label", typeLabel, 128),
	unix.NFT_CT_PKTS: ofHost("packets", typeInteger, 64), unix.NFT_CT_BYTES: ofHost("bytes", typeInteger, 64),
	unix.NFT_CT_AVGPKT: ofHost("avgpkt", typeInteger, 64), unix.NFT_CT_ZONE: ofHost("zone", typeInteger, 16),
	unix.NFT_CT_EVENTMASK: ofHost("event", typeEvent, 32), 19: ofNetwork("ip saddr", typeIPv4, 32), 20: ofNetwork("ip daddr", typeIPv4, 32),
	21: ofNetwork("ip6 saddr", typeIPv6, 128), 22: ofNetwork("ip6 daddr", typeIPv6, 128), 23: ofNetwork("id", typeInteger, 32),
}

var rtKeys = map[uint32]key{
	unix.NFT_RT_CLASSID: ofHost("classid", typeRealm, 32), unix.NFT_RT_NEXTHOP4: ofNetwork("nexthop", typeIPv4, 32).of("ip"),
	unix.NFT_RT_NEXTHOP6: ofNetwork("nexthop", typeIPv6, 128).of("ip6"), unix.NFT_RT_TCPMSS: ofHost("mtu", typeInteger, 16),
	4: ofHost("ipsec", typeBoolean, 8),
}

var socketKeys = map[uint32]key{
	0: ofHost("transparent", typeInteger, 8), 1: ofHost("mark", typeMark, 32), 2: ofHost("wildcard", typeInteger, 8),
	3: ofHost("cgroupv2", typeCgroup, 64),
}

var xfrmKeys = map[uint32]key{
	1: ofNetwork("daddr", typeIPv4, 32).of("ip"), 2: ofNetwork("daddr", typeIPv6, 128).of("ip6"), 3: ofNetwork("saddr", typeIPv4, 32).of("ip"),
	4: ofNetwork("saddr", typeIPv6, 128).of("ip6"), 5: ofHost("reqid", typeInteger, 32), 6: ofNetwork("spi", typeInteger, 32),
}

var fibKeys = map[uint32]key{
	unix.NFT_FIB_RESULT_OIF: ofHost("oif", typeIfindex, 32), unix.NFT_FIB_RESULT_OIFNAME: ofHost("oifname", typeString, 128),
	unix.NFT_FIB_RESULT_ADDRTYPE: ofHost("type", typeAddrType, 32),
}
