// Package nettest builds a pod's network and the world outside it from two real network namespaces, sends packets through
// it and says where they arrived. It is for tests and the demo; it imports no testing package.
//
// A World is the usual entry. Packets and what is wanted of them are written in a small language, one line per packet:
//
//	out 1.1.1.1:80 -> proxy 15001               # the application in the pod (UID 1000) dials out
//	out [2001:db8::1]:80 uid=1500 -> outside    # as that UID, and goes direct
//	out 127.0.0.1:9000 -> app                   # localhost
//	in 8080 -> proxy 15003                      # outside dials the pod's IPv4 and IPv6 address
//	in4 15010 -> app                            # its IPv4 address only; in6 likewise
//	out 9.9.9.9:80 -> error: refused            # or timeout, unreachable, reset, silent
//
// World.Serve has something listening wherever a packet is sent to, so an error is a rule's doing.
//
// Everything here is TCP. All functions need the right to create network namespaces (root or CAP_SYS_ADMIN and
// CAP_NET_ADMIN), and dialing as another UID needs CAP_SETUID; only the packet language needs nothing.
package nettest
