// Package nettest builds a pod's network and the world outside it from real network namespaces, sends packets through
// it and says where they arrived. It is for tests and the demo; it imports no testing package.
//
// A World is the usual entry. Packets and their expected outcomes are written in a small language, one line per packet:
//
//	DIRECTION [udp] [via=net1] DESTINATION [OPTION...] -> OUTCOME
//
//	out 1.1.1.1:80 -> proxy 15001               # the application in the pod (UID and GID 1000) dials out
//	out [2001:db8::1]:80 uid=1500 -> outside    # as that UID, and goes direct
//	out 1.1.1.1:80 gid=1337 -> outside          # as that GID
//	out 127.0.0.1:9000 -> app                   # localhost; the pod's own addresses likewise
//	out 10.77.0.2:8080 src=127.0.0.6 -> app     # from that address, which the pod must have
//	out 192.0.2.9:80 -> outside                 # 192.0.2.0/24 and 2001:db8:78::/48 are reached over net1
//	in 8080 -> proxy 15003                      # outside dials the pod's IPv4 and IPv6 address
//	in4 15010 -> app                            # its IPv4 address only; in6 likewise
//	in via=net1 8080 -> app                     # its addresses on net1, its second interface
//	guest 1.1.1.1:80 -> proxy 15001             # a virtual machine dials, whose router is the pod (interface k6t-vm)
//	out udp 10.96.0.10:53 -> proxy 15053        # a datagram; in and guest likewise
//	out 9.9.9.9:80 -> error: refused            # or timeout, unreachable, reset, silent
//
// A connection reaches the proxy only if the proxy can tell the dialed address, by SO_ORIGINAL_DST or, after TPROXY, by
// its socket's own. A datagram arrives only if its answer comes back from the address that was asked; the proxy
// doesn't have to know that address.
//
// World.Serve has something listening wherever a packet is sent to, so an error is a rule's doing. It adds net1 and the
// guest if packets need them, as a world without them is cheaper. A packet that is dropped times out, after 0.3 s if the
// line expects that.
//
// Below the language, a Process calls and listens in a namespace with a user and a group, also with real DNS messages.
//
// All functions need the right to create network namespaces (root or CAP_SYS_ADMIN and CAP_NET_ADMIN), dialing as another
// UID or GID needs CAP_SETUID or CAP_SETGID, and a guest a writable /proc/sys; only the packet language needs nothing.
package nettest
