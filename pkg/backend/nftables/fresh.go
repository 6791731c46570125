package nftables

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Fresh reports whether the namespace has no table of any family, neither detour's nor iptables' or another's.
func Fresh() (bool, error) {
	s, err := open()
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	defer s.close()
	fresh := true
	if err := s.askFor(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(fields) { fresh = false }); err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return fresh, nil
}
