package nftables

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// lack is what the kernel lacks if it refuses a message like this.
type lack struct {
	what  string // an expression, or the kind of message where it is no rule
	errno unix.Errno
	needs string
}

// Everything else that a table needs comes with nf_tables itself.
var lacks = []lack{
	{"table", unix.EAFNOSUPPORT, "tables for both families (CONFIG_NF_TABLES_INET)"},
	{"chain", unix.ENOENT, "chains of this type (module nft_chain_nat, CONFIG_NFT_NAT, for both families from Linux 5.2)"},
	{"chain", unix.EOPNOTSUPP, "chains of this type (module nft_chain_nat, CONFIG_NFT_NAT, for both families from Linux 5.2)"},
	{"ct", unix.ENOENT, "ct (module nft_ct, CONFIG_NFT_CT)"},
	{"ct", unix.EOPNOTSUPP, "marks or zones of connections (CONFIG_NF_CONNTRACK_MARK, CONFIG_NF_CONNTRACK_ZONES)"},
	{"redir", unix.ENOENT, "redirect (module nft_redir, CONFIG_NFT_REDIR)"},
	{"nat", unix.ENOENT, "dnat (module nft_nat, CONFIG_NFT_NAT)"},
	{"tproxy", unix.ENOENT, "tproxy (module nft_tproxy, CONFIG_NFT_TPROXY)"},
}

// explain says what the refused message does, and if it is a feature, which the kernel lacks.
func (b *batch) explain(r *refusal) error {
	if int(r.number) >= len(b.messages) {
		return r
	}
	m, what := b.messages[r.number], "table"
	switch {
	case m.rule != nil:
		what = b.expressionAt(m.at + r.offset)
	case m.chain != nil:
		what = "chain"
	}
	for _, l := range lacks {
		if l.what == what && l.errno == r.errno {
			return fmt.Errorf("%s: %w: it has no %s", m, r, l.needs)
		}
	}
	return fmt.Errorf("%s: %w", m, r)
}

// expressionAt is the name of the expression at a place in the buffer, "" if there is none.
func (b *batch) expressionAt(at int) string {
	for a := range decode(b.buf[min(at, len(b.buf)):]) {
		e := parse(a.data)
		return e.text(unix.NFTA_EXPR_NAME)
	}
	return ""
}
