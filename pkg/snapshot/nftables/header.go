package nftables

import "golang.org/x/sys/unix"

// base is where a payload's offset begins.
type base int

const (
	unknownBase base = iota
	link
	network
	transport
	inner
	bases
)

var baseNames = names{uint64(link): "ll", uint64(network): "nh", uint64(transport): "th", uint64(inner): "ih"}

// header is a protocol's header. The order of its fields is nft's, which numbers them in the user data of sets, from 1.
type header struct {
	name   string
	base   base
	bits   int // 0 unless headers of its base may follow it
	key    string
	fields []field
	upper  []upper
}

// field is at an offset of bits.
type field struct {
	name         string
	offset, bits int
	*datatype
	icmp byte // the ICMP type that has this field; 0 for all
}

type upper struct {
	number uint32
	*header
}

// above returns the header that number stands for in the key of h, or nil.
func (h *header) above(number uint32) *header {
	for _, u := range h.upper {
		if u.number == number {
			return u.header
		}
	}
	return nil
}

// The ICMP types that some fields depend on.
const (
	icmpEchoReply, icmpUnreachable, icmpRedirect, icmpEcho       = 0, 3, 5, 8
	icmp6TooBig, icmp6Problem, icmp6Echo, icmp6Reply, icmp6Query = 2, 4, 128, 129, 130
)

var (
	tcpHeader = &header{name: "tcp", base: transport, fields: []field{
		{"sport", 0, 16, typePort, 0}, {"dport", 16, 16, typePort, 0}, {"sequence", 32, 32, typeInteger, 0}, {"ackseq", 64, 32, typeInteger, 0},
		{"doff", 96, 4, typeInteger, 0}, {"reserved", 100, 4, typeInteger, 0}, {"flags", 104, 8, typeTCPFlags, 0},
		{"window", 112, 16, typeInteger, 0}, {"checksum", 128, 16, typeInteger, 0}, {"urgptr", 144, 16, typeInteger, 0},
	}}
	udpHeader = &header{name: "udp", base: transport, fields: []field{
		{"sport", 0, 16, typePort, 0}, {"dport", 16, 16, typePort, 0}, {"length", 32, 16, typeInteger, 0}, {"checksum", 48, 16, typeInteger, 0},
	}}
	udpliteHeader = &header{name: "udplite", base: transport, fields: []field{
		{"sport", 0, 16, typePort, 0}, {"dport", 16, 16, typePort, 0}, {"csumcov", 32, 16, typeInteger, 0}, {"checksum", 48, 16, typeInteger, 0},
	}}
	dccpHeader = &header{name: "dccp", base: transport, fields: []field{
		{"sport", 0, 16, typePort, 0}, {"dport", 16, 16, typePort, 0}, {"type", 67, 4, typeDCCPType, 0},
	}}
	sctpHeader = &header{name: "sctp", base: transport, fields: []field{
		{"sport", 0, 16, typePort, 0}, {"dport", 16, 16, typePort, 0}, {"vtag", 32, 32, typeInteger, 0}, {"checksum", 64, 32, typeInteger, 0},
	}}
	thHeader = &header{name: "th", base: transport, fields: []field{{"sport", 0, 16, typePort, 0}, {"dport", 16, 16, typePort, 0}}}
	ahHeader = &header{name: "ah", base: transport, key: "nexthdr", fields: []field{
		{"nexthdr", 0, 8, typeProtocol, 0}, {"hdrlength", 8, 8, typeInteger, 0}, {"reserved", 16, 16, typeInteger, 0},
		{"spi", 32, 32, typeInteger, 0}, {"sequence", 64, 32, typeInteger, 0},
	}}
	espHeader  = &header{name: "esp", base: transport, fields: []field{{"spi", 0, 32, typeInteger, 0}, {"sequence", 32, 32, typeInteger, 0}}}
	compHeader = &header{name: "comp", base: transport, key: "nexthdr", fields: []field{
		{"nexthdr", 0, 8, typeProtocol, 0}, {"flags", 8, 8, typeBitmask, 0}, {"cpi", 16, 16, typeInteger, 0},
	}}
	icmpHeader = &header{name: "icmp", base: transport, key: "type", fields: []field{
		{"type", 0, 8, typeICMPType, 0}, {"code", 8, 8, typeICMPCode, 0}, {"checksum", 16, 16, typeInteger, 0},
		{"id", 32, 16, typeInteger, icmpEcho}, {"sequence", 48, 16, typeInteger, icmpEcho},
		{"gateway", 32, 32, typeInteger, icmpRedirect}, {"mtu", 48, 16, typeInteger, icmpUnreachable},
	}}
	icmp6Header = &header{name: "icmpv6", base: transport, key: "type", fields: []field{
		{"type", 0, 8, typeICMP6Type, 0}, {"code", 8, 8, typeICMP6Code, 0}, {"checksum", 16, 16, typeInteger, 0},
		{"parameter-problem", 32, 32, typeInteger, icmp6Problem}, {"mtu", 32, 32, typeInteger, icmp6TooBig},
		{"id", 32, 16, typeInteger, icmp6Echo}, {"sequence", 48, 16, typeInteger, icmp6Echo}, {"max-delay", 32, 16, typeInteger, icmp6Query},
	}}
	igmpHeader = &header{name: "igmp", base: transport, fields: []field{
		{"type", 0, 8, typeIGMP, 0}, {"checksum", 16, 16, typeInteger, 0}, {"mrt", 8, 8, typeInteger, 0}, {"group", 32, 32, typeInteger, 0},
	}}
	ipHeader = &header{name: "ip", base: network, key: "protocol", fields: []field{
		{"version", 0, 4, typeInteger, 0}, {"hdrlength", 4, 4, typeInteger, 0}, {"dscp", 8, 6, typeDSCP, 0}, {"ecn", 14, 2, typeECN, 0},
		{"length", 16, 16, typeInteger, 0}, {"id", 32, 16, typeInteger, 0}, {"frag-off", 48, 16, typeInteger, 0}, {"ttl", 64, 8, typeInteger, 0},
		{"protocol", 72, 8, typeProtocol, 0}, {"checksum", 80, 16, typeInteger, 0}, {"saddr", 96, 32, typeIPv4, 0}, {"daddr", 128, 32, typeIPv4, 0},
	}}
	ip6Header = &header{name: "ip6", base: network, key: "nexthdr", fields: []field{
		{"version", 0, 4, typeInteger, 0}, {"dscp", 4, 6, typeDSCP, 0}, {"ecn", 10, 2, typeECN, 0}, {"flowlabel", 12, 20, typeInteger, 0},
		{"length", 32, 16, typeInteger, 0}, {"nexthdr", 48, 8, typeProtocol, 0}, {"hoplimit", 56, 8, typeInteger, 0},
		{"saddr", 64, 128, typeIPv6, 0}, {"daddr", 192, 128, typeIPv6, 0},
	}}
	arpHeader = &header{name: "arp", base: network, fields: []field{
		{"htype", 0, 16, typeInteger, 0}, {"ptype", 16, 16, typeEtherType, 0}, {"hlen", 32, 8, typeInteger, 0}, {"plen", 40, 8, typeInteger, 0},
		{"operation", 48, 16, typeARPOp, 0}, {"saddr ether", 64, 48, typeEther, 0}, {"saddr ip", 112, 32, typeIPv4, 0},
		{"daddr ether", 144, 48, typeEther, 0}, {"daddr ip", 192, 32, typeIPv4, 0},
	}}
	vlanHeader = &header{name: "vlan", base: link, bits: 32, key: "type", fields: []field{
		{"pcp", 0, 3, typeInteger, 0}, {"dei", 3, 1, typeInteger, 0}, {"cfi", 3, 1, typeInteger, 0}, {"id", 4, 12, typeInteger, 0},
		{"type", 16, 16, typeEtherType, 0},
	}}
	etherHeader = &header{name: "ether", base: link, bits: 112, key: "type", fields: []field{
		{"daddr", 0, 48, typeEther, 0}, {"saddr", 48, 48, typeEther, 0}, {"type", 96, 16, typeEtherType, 0},
	}}

	// The headers that only say which ones follow.
	inetHeader    = &header{base: link}
	netdevHeader  = &header{base: link}
	serviceHeader = &header{base: transport}
	noHeader      = &header{}
)

// init links headers, which refer to each other.
func init() {
	transports := []upper{
		{unix.IPPROTO_ESP, espHeader}, {unix.IPPROTO_AH, ahHeader}, {unix.IPPROTO_COMP, compHeader}, {unix.IPPROTO_UDP, udpHeader},
		{unix.IPPROTO_UDPLITE, udpliteHeader}, {unix.IPPROTO_TCP, tcpHeader}, {unix.IPPROTO_DCCP, dccpHeader}, {unix.IPPROTO_SCTP, sctpHeader},
	}
	ahHeader.upper, compHeader.upper = transports, transports
	all := append([]upper{
		{unix.IPPROTO_ICMP, icmpHeader}, {unix.IPPROTO_IGMP, igmpHeader}, {unix.IPPROTO_ICMPV6, icmp6Header},
	}, transports...)
	ipHeader.upper, ip6Header.upper, serviceHeader.upper = all, all, all
	inetHeader.upper = []upper{{unix.NFPROTO_IPV4, ipHeader}, {unix.NFPROTO_IPV6, ip6Header}}
	frames := []upper{
		{unix.ETH_P_IP, ipHeader}, {unix.ETH_P_ARP, arpHeader}, {unix.ETH_P_IPV6, ip6Header},
		{unix.ETH_P_8021Q, vlanHeader}, {unix.ETH_P_8021AD, vlanHeader},
	}
	etherHeader.upper, vlanHeader.upper, netdevHeader.upper = frames, frames, frames
}

// headers are numbered as in the user data of sets.
var headers = [...]*header{
	nil, ahHeader, espHeader, compHeader, icmpHeader, igmpHeader, udpHeader, udpliteHeader, tcpHeader, dccpHeader, sctpHeader, thHeader,
	ipHeader, ip6Header, icmp6Header, arpHeader, vlanHeader, etherHeader,
}

// outermost is the header that a family's packets begin with.
func outermost(family byte) *header {
	switch family {
	case unix.NFPROTO_INET:
		return inetHeader
	case unix.NFPROTO_IPV4:
		return ipHeader
	case unix.NFPROTO_IPV6:
		return ip6Header
	case unix.NFPROTO_ARP:
		return arpHeader
	case unix.NFPROTO_BRIDGE:
		return etherHeader
	}
	return netdevHeader
}
