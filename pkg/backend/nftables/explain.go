package nftables

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// lack is a feature that the kernel lacks if it refuses a message in this way.
type lack struct {
	what  string // an expression, or the kind of message, and a chain's type, if it is no rule
	errno unix.Errno
	needs string
}

const chainNAT = "chains of this type (module nft_chain_nat, CONFIG_NFT_NAT, for both families from Linux 5.2)"

// lacks has what is built separately from nf_tables.
var lacks = []lack{
	{"table", unix.EAFNOSUPPORT, "tables for both families (CONFIG_NF_TABLES_INET)"},
	{"table", unix.EOPNOTSUPP, "tables for both families (CONFIG_NF_TABLES_INET)"},
	{"chain nat", unix.ENOENT, chainNAT},
	{"chain nat", unix.EOPNOTSUPP, chainNAT},
	{"chain route", unix.ENOENT, "chains of type route for both families (Linux 5.2)"},
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
	m, _ := r.About.(message)
	var what []string
	doubt := ""
	switch {
	case r.Expression != "":
		what = []string{r.Expression}
	case m.rule != nil: // older kernels, such as 4.15, point at nothing
		what, doubt = expressions(m.rule), "perhaps "
	case m.chain != nil && m.chain.hook != nil:
		what = []string{"chain " + m.chain.hook.kind}
	case m.verb == makeTable:
		what = []string{"table"}
	}
	var needs []string
	for _, l := range lacks {
		if slices.Contains(what, l.what) && l.errno == r.Errno {
			needs = append(needs, l.needs)
		}
	}
	if needs == nil {
		return err
	}
	return fmt.Errorf("%w: %sit has no %s", err, doubt, strings.Join(needs, ", or no "))
}

func expressions(r *rule) (names []string) {
	nft.Expressions(r.code, func(name string, _ *netlink.Fields) { names = append(names, name) })
	return names
}
