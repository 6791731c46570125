package sockets

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func TestSocketsAndWhoHoldsThem(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "sockets")
	var waiting, all []Socket
	err := ns.Do(func() (err error) {
		open(t, "tcp4", "127.0.0.1:4001")
		open(t, "tcp6", "[::]:4002")
		open(t, "tcp", "[::]:4003")
		open(t, "udp4", "127.0.0.1:4004")
		for _, address := range []string{"127.0.0.1:4001", "[::1]:4002", "127.0.0.1:4003"} {
			dial(t, "tcp", address)
		}
		dial(t, "udp", "127.0.0.1:4004")
		if waiting, err = List(Waiting); err == nil {
			all, err = List(All)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Socket{
		{Protocol: unix.IPPROTO_TCP, Local: netip.MustParseAddrPort("127.0.0.1:4001")},
		{Protocol: unix.IPPROTO_TCP, Local: netip.MustParseAddrPort("[::]:4002"), OnlyIPv6: true},
		{Protocol: unix.IPPROTO_TCP, Local: netip.MustParseAddrPort("[::]:4003")},
		{Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort("127.0.0.1:4004")},
	}
	for i := range want {
		want[i].UID = uint32(os.Getuid())
	}
	if got := known(waiting); !slices.Equal(got, want) {
		t.Errorf("waiting: got %+v, want %+v", got, want)
	}
	for _, server := range want {
		port := server.Local.Port()
		if !slices.ContainsFunc(all, func(s Socket) bool { return s.Remote.Port() == port && s.Remote.Addr().IsLoopback() }) {
			t.Errorf("no socket is connected to port %d: %+v", port, all)
		}
	}
	processes, seen := Processes("/proc", []int{os.Getpid()})
	if !seen || len(processes) != 1 {
		t.Fatalf("got %+v, %v", processes, seen)
	}
	p := processes[0]
	if p.PID != os.Getpid() || p.Name == "" || p.UID != uint32(os.Getuid()) || p.GID != uint32(os.Getgid()) {
		t.Errorf("got %+v", p)
	}
	for _, s := range waiting {
		if !slices.Contains(p.Sockets, s.Inode) {
			t.Errorf("it does not hold %+v", s)
		}
	}
}

// known are the sockets by port, without their inodes.
func known(list []Socket) []Socket {
	list = slices.Clone(list)
	for i := range list {
		list[i].Inode = 0
	}
	slices.SortFunc(list, func(a, b Socket) int { return int(a.Local.Port()) - int(b.Local.Port()) })
	return list
}

// open opens a socket that waits. One of the network tcp6 takes no IPv4.
func open(t *testing.T, network, address string) {
	t.Helper()
	var l interface{ Close() error }
	var err error
	if network == "udp4" {
		l, err = net.ListenPacket(network, address)
	} else {
		l, err = net.Listen(network, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func dial(t *testing.T, network, address string) {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

func TestAProcessThatHasEndedIsLeftOut(t *testing.T) {
	if all, seen := Processes(t.TempDir(), []int{1}); len(all) > 0 || !seen {
		t.Errorf("got %+v, %v", all, seen)
	}
}

// mapped is struct inet_diag_msg of a socket of both families that speaks IPv4.
func mapped() []byte {
	b := make([]byte, messageSize)
	b[0] = unix.AF_INET6
	copy(b[localPort:], []byte{0x1f, 0x90, 0x9c, 0x40})
	copy(b[localAddr+10:], []byte{0xff, 0xff, 10, 77, 0, 2})
	copy(b[remoteAddr+10:], []byte{0xff, 0xff, 10, 77, 0, 1})
	return b
}

func TestASocketOfBothFamiliesHasIPv4Addresses(t *testing.T) {
	s, ok := parse(mapped())
	want := Socket{Local: netip.MustParseAddrPort("10.77.0.2:8080"), Remote: netip.MustParseAddrPort("10.77.0.1:40000")}
	if !ok || s != want {
		t.Errorf("got %v %+v, want %+v", ok, s, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(mapped())
	f.Fuzz(func(t *testing.T, body []byte) {
		if s, ok := parse(body); ok && !s.Local.Addr().IsValid() {
			t.Errorf("%+v", s)
		}
	})
}
