package trace

// Expr is something that a rule reads: a part of the packet, a constant, a calculation.
//
//sumtype:decl
type Expr interface {
	// eval returns one value, or one for each part of a concatenation. known is false if the walk can't know it.
	eval(w *walk) (values []Value, known bool)
}

// Field is a part of the packet or of what the kernel knows about it.
type Field uint8

// The fields. Numbers are as the kernel has them.
const (
	NFProto      Field = iota + 1 // NFPROTO_IPV4 (2) or NFPROTO_IPV6 (10)
	L4Proto                       // IPPROTO_*
	Saddr                         // source address
	Daddr                         // destination address
	Sport                         // source port; no packet without ports has it
	Dport                         // destination port
	ICMPType                      // of protocol icmp or ipv6-icmp
	ICMPCode                      //
	TCPFlags                      // FIN 1, SYN 2, RST 4, PSH 8, ACK 16
	IIFName                       // empty in hooks of packets that a process sends
	OIFName                       // empty ahead of routing
	SKUID                         // no packet without a socket has it
	SKGID                         //
	Mark                          //
	CTMark                        // none for an untracked packet
	CTState                       // a bit of CTInvalid and so on
	CTStatus                      // IPS_* bits, of which a walk knows IPS_SEEN_REPLY, IPS_CONFIRMED, IPS_SRC_NAT and IPS_DST_NAT
	CTDir                         // 0 original, 1 reply
	CTOrigSaddr                   // the connection's original source, and so on
	CTOrigDaddr                   //
	CTOrigSport                   //
	CTOrigDport                   //
	CTZone                        //
	SaddrType                     // RTN_*, by the routing tables (addrtype, fib saddr type)
	DaddrType                     //
	SaddrTypeIIF                  // the same, limited to the interface that the packet came in on
	DaddrTypeIIF                  //
	SaddrTypeOIF                  // the same, limited to the interface by which it leaves
	DaddrTypeOIF                  //
)

// The bits of CTState (NF_CT_STATE_BIT).
const (
	CTInvalid     = 1
	CTEstablished = 2
	CTRelated     = 4
	CTNew         = 8
	CTUntracked   = 64
)

// The bits of CTStatus (enum ip_conntrack_status).
const (
	StatusSeenReply = 1 << 1
	StatusConfirmed = 1 << 3
	StatusSNAT      = 1 << 4
	StatusDNAT      = 1 << 5
)

type (
	// Const is a constant.
	Const []Value
	// Concat puts the parts of a key together.
	Concat []Expr
	// And is &, of two numbers or of two addresses. Or and Xor are of numbers only.
	And struct{ A, B Expr }
	// Or is |.
	Or struct{ A, B Expr }
	// Xor is ^.
	Xor struct{ A, B Expr }
	// Shift is << for a positive By, >> for a negative one.
	Shift struct {
		A  Expr
		By int
	}
	// Lookup is what a map has for a key. No element: the rule does not match.
	Lookup struct {
		Key Expr
		Map *Set
	}
	// Numgen is a number from Offset to Offset+Mod-1, each equally likely: nft's numgen, and its hashes, whose outcome only the kernel
	// knows.
	Numgen struct{ Mod, Offset uint32 }
	// UnknownExpr is one that the front-end doesn't know.
	UnknownExpr struct{ Text string }
)
