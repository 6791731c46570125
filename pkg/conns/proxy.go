package conns

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/sockets"
)

// Proxy tells the sidecar's sockets and listeners from the application's.
type Proxy struct {
	// Mesh is the row of package mesh, empty if several fit.
	Mesh     string   `json:"mesh,omitempty"`
	UIDs     []uint32 `json:"uids"`
	GIDs     []uint32 `json:"gids,omitempty"`
	Outbound []uint16 `json:"outbound"`
	Inbound  []uint16 `json:"inbound"`
	DNS      []uint16 `json:"dns,omitempty"`
	Admin    uint16   `json:"admin"`
	// Listening are those of its ports at which a socket listens.
	Listening []uint16 `json:"listening"`
	// Processes listen at its outbound ports, as far as /proc shows them.
	Processes []sockets.Process `json:"processes,omitempty"`

	rows []mesh.Dialect // those that fit
}

// envoyAdmin is the admin port of a mesh whose row has none.
const envoyAdmin = 15000

// FindProxy says what is known of the proxy: by the mesh of that name, or, if it is empty, by the meshes at whose ports of both
// directions something listens, or by all meshes. override replaces what is not 0.
func (s Snapshot) FindProxy(meshName string, override redirect.Proxy) (Proxy, error) {
	rows, err := s.rows(meshName)
	if err != nil {
		return Proxy{}, err
	}
	var p Proxy
	if len(rows) == 1 {
		p.Mesh = rows[0].Name
	}
	p.rows = rows
	for _, row := range rows {
		p.UIDs = append(p.UIDs, cmp.Or(override.UID, row.Proxy.UID))
		p.GIDs = append(p.GIDs, cmp.Or(override.GID, row.Proxy.GID))
		p.Outbound = append(p.Outbound, cmp.Or(override.Outbound, row.Proxy.Outbound))
		p.Inbound = append(p.Inbound, cmp.Or(override.Inbound, row.Proxy.Inbound))
		p.DNS = append(p.DNS, cmp.Or(override.DNS, row.Proxy.DNS))
		p.Admin = cmp.Or(override.Admin, row.Proxy.Admin, envoyAdmin)
	}
	p.UIDs, p.GIDs = set(p.UIDs), set(p.GIDs)
	p.Outbound, p.Inbound, p.DNS = set(p.Outbound), set(p.Inbound), set(p.DNS)
	s.meet(&p)
	return p, nil
}

func (s Snapshot) rows(meshName string) ([]mesh.Dialect, error) {
	if meshName != "" {
		row, ok := mesh.Find(meshName)
		if !ok {
			return nil, fmt.Errorf("no mesh is called %q: there are %v", meshName, mesh.Names())
		}
		return []mesh.Dialect{row}, nil
	}
	var all, listening []mesh.Dialect
	for _, name := range mesh.Names() {
		row, _ := mesh.Find(name)
		all = append(all, row)
		if s.listens("tcp", row.Proxy.Outbound) && s.listens("tcp", row.Proxy.Inbound) {
			listening = append(listening, row)
		}
	}
	if listening != nil {
		return listening, nil
	}
	return all, nil
}

// set sorts, and leaves out 0 and what is there twice.
func set[T cmp.Ordered](list []T) []T {
	var zero T
	slices.Sort(list)
	return slices.DeleteFunc(slices.Compact(list), func(v T) bool { return v == zero })
}

// has reports whether the mesh may be the one of this name.
func (p Proxy) has(name string) bool {
	return slices.ContainsFunc(p.rows, func(row mesh.Dialect) bool { return row.Name == name })
}

func (s Snapshot) listens(protocol string, port uint16) bool {
	_, ok := s.listener(protocol, port)
	return ok
}

// listener finds who listens at a port of any address.
func (s Snapshot) listener(protocol string, port uint16) (sockets.Socket, bool) {
	for _, found := range s.sockets[protocol] {
		if found.Local.Port() == port && found.Remote == (netip.AddrPort{}) {
			return found, true
		}
	}
	return sockets.Socket{}, false
}

// meet adds who really listens at the proxy's ports.
func (s Snapshot) meet(p *Proxy) {
	p.Listening = []uint16{} // in JSON a list, not null
	for _, port := range slices.Concat(p.Outbound, p.Inbound) {
		found, ok := s.listener("tcp", port)
		if !ok {
			continue
		}
		p.Listening = append(p.Listening, port)
		p.UIDs = append(p.UIDs, found.UID)
		if holder, ok := s.processes[found.Inode]; ok && slices.Contains(p.Outbound, port) {
			p.Processes = append(p.Processes, holder)
		}
	}
	for _, port := range p.DNS {
		if s.listens("udp", port) {
			p.Listening = append(p.Listening, port)
		}
	}
	slices.Sort(p.UIDs)
	p.UIDs = slices.Compact(p.UIDs)
}

// Owner is who holds the socket at the pod's end of a connection.
type Owner struct {
	UID uint32 `json:"uid"`
	// GID is nil if the process is not known: a socket has none.
	GID *uint32 `json:"gid,omitempty"`
	// Proxy says that rules take it for the proxy: by its user, or by its group if the process is known.
	Proxy   bool             `json:"proxy"`
	Process *sockets.Process `json:"process,omitempty"`
}

func (s Snapshot) owner(p Proxy, protocol string, end Tuple) *Owner {
	found, ok := s.sockets.end(protocol, end)
	if !ok {
		return nil
	}
	o := &Owner{UID: found.UID, Proxy: slices.Contains(p.UIDs, found.UID)}
	if holder, ok := s.processes[found.Inode]; ok {
		o.Process, o.GID = &holder, &holder.GID
		o.Proxy = o.Proxy || slices.Contains(p.GIDs, holder.GID)
	}
	return o
}
