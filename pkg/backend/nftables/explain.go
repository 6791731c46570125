package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nft"
)

// lack is a feature that the kernel lacks if it refuses a message in this way.
type lack struct {
	what  string // an expression, or the kind of message if it is no rule
	errno unix.Errno
	needs string
}

// lacks has what is built separately from nf_tables.
var lacks = []lack{
	{"table", unix.EAFNOSUPPORT, "tables for both families (CONFIG_NF_TABLES_INET)"},
	{"table", unix.EOPNOTSUPP, "tables for both families (CONFIG_NF_TABLES_INET)"},
	{"chain", unix.ENOENT, "chains of this type (module nft_chain_nat, CONFIG_NFT_NAT, for both families from Linux 5.2)"},
	{"chain", unix.EOPNOTSUPP, "chains of this type (module nft_chain_nat, CONFIG_NFT_NAT, for both families from Linux 5.2)"},
	{"ct", unix.ENOENT, "ct (module nft_ct, CONFIG_NFT_CT)"},
	{"ct", unix.EOPNOTSUPP, "marks or zones of connections (CONFIG_NF_CONNTRACK_MARK, CONFIG_NF_CONNTRACK_ZONES)"},
	{"redir", unix.ENOENT, "redirect (module nft_redir, CONFIG_NFT_REDIR)"},
	{"nat", unix.ENOENT, "dnat (module nft_nat, CONFIG_NFT_NAT)"},
	{"tproxy", unix.ENOENT, "tproxy (module nft_tproxy, CONFIG_NFT_TPROXY)"},
}

// explain adds to a refusal which feature the kernel lacks, if it is that.
func explain(err error) error {
	var r *nft.Refused
	if !errors.As(err, &r) {
		return err
	}
	what := "table"
	switch m, _ := r.About.(message); {
	case m.rule != nil:
		what = r.Expression
	case m.chain != nil:
		what = "chain"
	}
	for _, l := range lacks {
		if l.what == what && l.errno == r.Errno {
			return fmt.Errorf("%w: it has no %s", err, l.needs)
		}
	}
	return err
}
