package backend

import (
	"context"
	"errors"
	"os"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/rules"
)

// errGated says why iptables was not enough.
var errGated = errors.New("redirection that begins with the proxy's first packet takes backend nftables, and iptables is chosen")

// choose picks the backend.
func choose(ctx context.Context, choice string, rs rules.Ruleset, families []rules.Family) (way, error) {
	byNFTables := func() (way, error) { return byNFTables{nftables.Compile(rs, families)}, nil }
	switch {
	case choice == NFTables:
		return byNFTables()
	case rs.Gated() && choice == IPTables:
		return nil, errGated
	case rs.Gated():
		return byNFTables()
	}
	own := iptables.Owning(rs, families)
	b, err := iptables.Detect(ctx, families...)
	if choice == Auto && (err != nil || !b.Loaded() || tooLong(own)) && nftables.Works() == nil {
		return byNFTables()
	}
	if err != nil {
		return nil, err
	}
	return byIPTables{b, own}, nil
}

// maxRules is how many rules a family may have before Auto takes nftables, which has sets: every connection is compared
// with iptables' rules one after the other. At 10,000 that costs half of the connections per second, at 1,000 up to a
// tenth, at 100 nothing that can be measured (make bench).
const maxRules = 500

func tooLong(own iptables.Owned) bool {
	for _, save := range own {
		if len(save.Rules) > maxRules {
			return true
		}
	}
	return false
}

type byIPTables struct {
	*iptables.Backend
	want iptables.Owned
}

func (b byIPTables) keep(r *attachment.Record) {
	r.Rules = map[rules.Family]string{}
	for f, save := range b.want {
		r.Rules[f] = save.Restore(iptext.Save{})
	}
}

func (b byIPTables) apply(ctx context.Context, lock *os.File, stale []attachment.Record) error {
	old := iptables.Owned{}
	for _, r := range stale {
		if !mayBe(r, b.Name()) {
			continue
		}
		for f, save := range owned(r) {
			old[f] = old[f].Join(save)
		}
	}
	return b.Apply(ctx, lock, b.want, old)
}

type byNFTables struct{ table nftables.Table }

func (byNFTables) Name() string { return nftables.Name }

func (n byNFTables) keep(r *attachment.Record) { r.Table = n.table.String() }

func (n byNFTables) apply(context.Context, *os.File, []attachment.Record) error {
	return nftables.Apply(n.table)
}

// standing is what a backend, or none, has programmed already.
type standing string

func (s standing) Name() string { return string(s) }

func (standing) keep(*attachment.Record) {}

func (standing) apply(context.Context, *os.File, []attachment.Record) error { return nil }
