package nettest

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

const (
	maxDatagram = 4096
	maxControl  = 256
)

var errNoDestination = errors.New("the kernel doesn't say where the datagram was sent to")

// udp answers each datagram by what answer makes of it, nil for no answer.
func udp(answer func([]byte) []byte) service {
	return func(l *Listener, family, address string) (func(), error) {
		config := net.ListenConfig{Control: setAnyDestination}
		socket, err := config.ListenPacket(context.Background(), "udp"+family, address)
		if err != nil {
			return nil, err
		}
		conn := socket.(*net.UDPConn)
		l.sockets = append(l.sockets, conn)
		return func() { answerAll(conn, answer) }, nil
	}
}

// answerAll leaves errors in answering to the peer, which gets no answer.
func answerAll(conn *net.UDPConn, answer func([]byte) []byte) {
	datagram, control := make([]byte, maxDatagram), make([]byte, maxControl)
	for {
		n, controls, _, peer, err := conn.ReadMsgUDPAddrPort(datagram, control)
		if err != nil {
			return
		}
		reply := answer(datagram[:n])
		from, err := answerFrom(control[:controls])
		if reply == nil || err != nil {
			continue
		}
		_, _, _ = conn.WriteMsgUDPAddrPort(reply, from, peer)
	}
}

// answerFrom turns the control message that came with a datagram into the one with which the answer leaves from the
// address to which that was sent. A socket for all addresses would choose the nearest of them.
func answerFrom(control []byte) ([]byte, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: the interface, the local address, the header's destination
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}), nil
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			// struct in6_pktinfo: the header's destination, the interface
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}), nil
		}
	}
	return nil, errNoDestination
}
