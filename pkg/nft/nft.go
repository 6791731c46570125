// Package nft reads nf_tables, and prints rules in nft's language. Both iptables-nft and nftables program nf_tables.
// It works in the network namespace of the calling thread.
package nft

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
)

// Conn is a conversation with nf_tables.
type Conn struct{ *netlink.Conn }

// Open opens a conversation about the calling thread's network namespace.
func Open() (Conn, error) {
	c, err := netlink.Open(unix.NETLINK_NETFILTER)
	return Conn{c}, err
}

// Listen receives what nf_tables tells a multicast group of nfnetlink, such as unix.NFNLGRP_NFTRACE; see netlink.Listen.
func Listen(group, buffer int) (*netlink.Listener, error) {
	return netlink.Listen(unix.NETLINK_NETFILTER, group, buffer)
}

const (
	subsystem  = unix.NFNL_SUBSYS_NFTABLES << 8
	headerSize = 4 // struct nfgenmsg
)

// header is struct nfgenmsg.
func header(family byte, resource uint16) []byte {
	return []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
}

// Ask sends a request about a family's tables and calls each with every answer's attributes.
func (c Conn) Ask(family byte, kind int, flags uint16, each func(netlink.Fields), attributes ...netlink.Attribute) error {
	return c.Conn.Ask(subsystem|kind, flags, header(family, 0), func(body []byte) {
		if len(body) >= headerSize {
			each(netlink.Parse(body[headerSize:]))
		}
	}, attributes...)
}

// Works reports whether the kernel has nf_tables and lets this process use it. It changes nothing. It can't tell whether
// the kernel has everything that rules need.
func Works() error {
	c, err := Open()
	if err == nil {
		defer c.Close()
		err = c.Ask(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(netlink.Fields) {})
	}
	return Explain(err)
}

// Explain says what it means if a request without content fails with err.
func Explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("use nf_tables: %w: CAP_NET_ADMIN is missing", err)
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("use nf_tables: %w: the kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("use nf_tables: %w: the kernel has none (CONFIG_NF_TABLES)", err)
	}
	return fmt.Errorf("use nf_tables: %w", err)
}

// Tables lists the tables of an nf_tables family; UNSPEC stands for all.
func Tables(family byte) ([]string, error) {
	c, err := Open()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	defer c.Close()
	var names []string
	err = c.Ask(family, unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(t netlink.Fields) {
		names = append(names, t.Text(unix.NFTA_TABLE_NAME))
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return names, nil
}

// Rules calls each with every rule of a chain, in order.
func (c Conn) Rules(family byte, table, chain string, each func(netlink.Fields)) error {
	return c.Ask(family, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(f netlink.Fields) {
		if f.Text(unix.NFTA_RULE_TABLE) == table && f.Text(unix.NFTA_RULE_CHAIN) == chain { // older kernels list those of every chain
			each(f)
		}
	}, netlink.Text(unix.NFTA_RULE_TABLE, table), netlink.Text(unix.NFTA_RULE_CHAIN, chain))
}

// ProtocolOf is nf_tables' number of an address family; UNSPEC if f is none.
func ProtocolOf(f rules.Family) byte {
	switch f {
	case rules.IPv4:
		return unix.NFPROTO_IPV4
	case rules.IPv6:
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_UNSPEC
}

// What golang.org/x/sys lacks, or has as negative numbers.
const (
	Drop   = 0
	Accept = 1
	Jump   = unix.NFT_JUMP & (1<<32 - 1)
	Goto   = unix.NFT_GOTO & (1<<32 - 1)
	Return = unix.NFT_RETURN & (1<<32 - 1)

	TProxyFamily  = 1
	TProxyRegPort = 3
)

// Verdicts are those that end a chain.
var Verdicts = []Named{{"drop", Drop}, {"accept", Accept}, {"return", Return}}

// Value reads the NFTA_DATA_VALUE of an attribute.
func Value(attribute []byte) []byte {
	inner := netlink.Parse(attribute)
	return inner[unix.NFTA_DATA_VALUE]
}

// Expressions visits a rule's expressions: their names and their attributes, until the next expression.
func Expressions(code []byte, visit func(name string, f *netlink.Fields)) {
	var f netlink.Fields
	for a := range netlink.Attributes(code) {
		e := netlink.Parse(a.Data)
		f = netlink.Parse(e[unix.NFTA_EXPR_DATA])
		visit(e.Text(unix.NFTA_EXPR_NAME), &f)
	}
}

// JumpOf is the chain that a rule jumps or goes to; "" if there is none.
func JumpOf(code []byte) (into string) {
	Expressions(code, func(name string, f *netlink.Fields) {
		if name == "immediate" {
			into, _ = Verdict(f)
		}
	})
	return into
}

// Verdict reads the chain and the code of an immediate whose register is the verdict's.
func Verdict(f *netlink.Fields) (chain string, code uint32) {
	data := netlink.Parse(f[unix.NFTA_IMMEDIATE_DATA])
	verdict := netlink.Parse(data[unix.NFTA_DATA_VERDICT])
	return verdict.Text(unix.NFTA_VERDICT_CHAIN), verdict.Number(unix.NFTA_VERDICT_CODE)
}

// commentType is the type of a comment in a rule's user data (NFTNL_UDATA_RULE_COMMENT).
const commentType = 0

// Comment finds the comment in a rule's user data; "" if there is none.
func Comment(userdata []byte) string {
	for len(userdata) >= 2 && len(userdata) >= 2+int(userdata[1]) {
		kind, value := userdata[0], userdata[2:2+int(userdata[1])]
		if kind == commentType {
			return strings.TrimSuffix(string(value), "\x00")
		}
		userdata = userdata[2+len(value):]
	}
	return ""
}
