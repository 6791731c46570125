package repair

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/netns"
)

// place is a pod's network namespace and its interface there.
type place struct{ path, link string }

// openNamespaceOf opens the namespace under dir that has all the addresses. It fails unless there is exactly one.
func openNamespaceOf(dir string, addresses []netip.Addr) (*netns.Pod, place, error) {
	if len(addresses) == 0 {
		return nil, place{}, errors.New("the pod has no address to find its network namespace by")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, place{}, fmt.Errorf("list network namespaces: %w", err)
	}
	var found []place
	var inodes []os.FileInfo
	for _, file := range files {
		path := filepath.Join(dir, file.Name())
		link, err := linkOf(path, addresses)
		if err != nil {
			return nil, place{}, err
		}
		info, err := os.Stat(path)
		if link == "" || err != nil || slices.ContainsFunc(inodes, func(other os.FileInfo) bool { return os.SameFile(info, other) }) {
			continue
		}
		found, inodes = append(found, place{path, link}), append(inodes, info)
	}
	switch len(found) {
	case 0:
		return nil, place{}, fmt.Errorf("no network namespace in %s has %s", dir, join(addresses))
	case 1:
		ns, err := netns.Open(found[0].path)
		return ns, found[0], err
	}
	return nil, place{}, fmt.Errorf("%s and %s both have %s", found[0].path, found[1].path, join(addresses))
}

func join(addresses []netip.Addr) string {
	var out []string
	for _, addr := range addresses {
		out = append(out, addr.String())
	}
	return strings.Join(out, " and ")
}

// linkOf returns the interface with the first address in the namespace at path, or "" if the namespace lacks one of the addresses,
// is the host's, or is none.
func linkOf(path string, addresses []netip.Addr) (string, error) {
	ns, err := netns.Open(path)
	if errors.Is(err, netns.ErrGone) || errors.Is(err, netns.ErrHost) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer ns.Close()
	var link string
	err = ns.Do(func() error {
		have, err := linksByAddress()
		if err != nil {
			return err
		}
		for _, addr := range addresses {
			if have[addr] == "" {
				return nil
			}
		}
		link = have[addresses[0]]
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("list addresses in %s: %w", path, err)
	}
	return link, nil
}

// linksByAddress lists the interfaces of the calling thread's namespace that are up.
func linksByAddress() (map[netip.Addr]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	have := map[netip.Addr]string{}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 {
			continue
		}
		addresses, err := l.Addrs()
		if err != nil {
			return nil, err
		}
		for _, address := range addresses {
			if p, err := netip.ParsePrefix(address.String()); err == nil {
				have[p.Addr().Unmap().WithZone("")] = l.Name
			}
		}
	}
	return have, nil
}
