package ipset

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	own "github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func save(t *testing.T, ns *nettest.Namespace) (text string) {
	t.Helper()
	err := ns.Do(func() (err error) {
		text, err = Save()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSetsAreRead(t *testing.T) {
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "ipset")
	if got := save(t, ns); got != "" {
		t.Errorf("without sets: %q", got)
	}
	tcp, sctp := uint8(unix.IPPROTO_TCP), uint8(unix.IPPROTO_SCTP)
	ip := net.ParseIP
	for _, c := range []struct {
		kind    string
		six     bool
		entries []netlink.IPSetEntry
		want    []string
	}{
		{"hash:ip", false, []netlink.IPSetEntry{{IP: ip("10.0.0.1").To4()}, {IP: ip("10.0.0.2").To4(), Comment: "x"}}, []string{"10.0.0.1", "10.0.0.2"}},
		{"hash:ip", true, []netlink.IPSetEntry{{IP: ip("2001:db8::1")}}, []string{"2001:db8::1"}},
		{"hash:net", false, []netlink.IPSetEntry{{IP: ip("10.0.0.0").To4(), CIDR: 8}, {IP: ip("10.1.2.3").To4(), CIDR: 32}}, []string{"10.0.0.0/8", "10.1.2.3"}},
		{"hash:net", true, []netlink.IPSetEntry{{IP: ip("2001:db8::"), CIDR: 32}}, []string{"2001:db8::/32"}},
		{"hash:ip,port", false, []netlink.IPSetEntry{{IP: ip("10.0.0.1").To4(), Port: new(uint16(80)), Protocol: &tcp}, {IP: ip("10.0.0.1").To4(), Port: new(uint16(9)), Protocol: &sctp}}, []string{"10.0.0.1,sctp:9", "10.0.0.1,tcp:80"}},
		{"hash:ip,port,ip", false, []netlink.IPSetEntry{{IP: ip("10.0.0.1").To4(), Port: new(uint16(80)), Protocol: &tcp, IP2: ip("10.9.9.9").To4()}}, []string{"10.0.0.1,tcp:80,10.9.9.9"}},
		{"hash:ip,port,net", false, []netlink.IPSetEntry{{IP: ip("10.0.0.1").To4(), Port: new(uint16(80)), Protocol: &tcp, IP2: ip("10.9.0.0").To4(), CIDR2: 16}}, []string{"10.0.0.1,tcp:80,10.9.0.0/16"}},
		{"hash:net,port", true, []netlink.IPSetEntry{{IP: ip("2001:db8::"), CIDR: 32, Port: new(uint16(443)), Protocol: &tcp}}, []string{"2001:db8::/32,tcp:443"}},
		{"hash:net,iface", false, []netlink.IPSetEntry{{IP: ip("10.0.0.0").To4(), CIDR: 8, IFace: "eth0"}}, []string{"10.0.0.0/8,eth0"}},
	} {
		family, word := uint8(unix.NFPROTO_IPV4), "inet"
		if c.six {
			family, word = unix.NFPROTO_IPV6, "inet6"
		}
		name := strings.NewReplacer(":", "-", ",", "-").Replace(c.kind) + word
		err := ns.Do(func() error {
			if err := netlink.IpsetCreate(name, c.kind, netlink.IpsetCreateOptions{Family: family, Comments: true}); err != nil {
				return err
			}
			for _, e := range c.entries {
				if err := netlink.IpsetAdd(name, &e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", c.kind, err)
		}
		text := save(t, ns)
		var got []string
		for line := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(line, "add "+name+" "); ok {
				got = append(got, strings.TrimSuffix(rest, "\n"))
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) || !strings.Contains(text, "create "+name+" "+c.kind+" family "+word+"\n") {
			t.Errorf("%s: got %q of\n%s", c.kind, got, text)
		}
		if sets, err := iptsave.ReadSets([]byte(text)); err != nil || sets[name] == nil || sets[name].Unknown != "" || len(sets[name].Elements) != len(c.want) {
			t.Errorf("%s: the reader gets %+v, %v", c.kind, sets[name], err)
		}
	}
}

// What the library can't make: a set that looks at a part of an address only, and an exception.
func TestNetmasksAndExceptionsAreRead(t *testing.T) {
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "netmask")
	const create, add = 2, 9
	address := func(a string) own.Attribute {
		return own.Nested(elementAddr, own.Attribute{Kind: 1 | unix.NLA_F_NET_BYTEORDER, Data: net.ParseIP(a).To4()})
	}
	one := func(kind uint16, v byte) own.Attribute { return own.Attribute{Kind: kind, Data: []byte{v}} }
	err := ns.Do(func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		var failed error
		ask := func(kind int, attributes ...own.Attribute) {
			header := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
			failed = errors.Join(failed, c.Conn.Ask(subsystem|kind, unix.NLM_F_ACK, header, func([]byte) {}, append([]own.Attribute{one(attrProtocol, version)}, attributes...)...))
		}
		for name, kind := range map[string]string{"masked": "hash:ip", "excepted": "hash:net"} {
			data := []own.Attribute{}
			if name == "masked" {
				data = append(data, one(dataNetmask, 24))
			}
			ask(create, own.Text(attrName, name), own.Text(attrType, kind), one(4, 1), one(attrFamily, unix.NFPROTO_IPV4), own.Nested(attrData, data...))
		}
		ask(add, own.Text(attrName, "masked"), own.Nested(attrData, address("10.1.2.3")))
		ask(add, own.Text(attrName, "excepted"), own.Nested(attrData, address("10.0.0.0"), one(elementPrefix, 8)))
		except := own.Number(elementFlags|unix.NLA_F_NET_BYTEORDER, flagNomatch)
		ask(add, own.Text(attrName, "excepted"), own.Nested(attrData, address("10.2.0.0"), one(elementPrefix, 16), except))
		return failed
	})
	if err != nil {
		t.Fatal(err)
	}
	got := save(t, ns)
	for _, want := range []string{"add masked 10.1.2.0/24\n", "add excepted 10.0.0.0/8\n", "add excepted 10.2.0.0/16 nomatch\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

// A dump has several parts.
func TestALargeSetIsReadWhole(t *testing.T) {
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "large")
	const count = 3000
	err := ns.Do(func() error {
		if err := netlink.IpsetCreate("large", "hash:ip", netlink.IpsetCreateOptions{Family: unix.NFPROTO_IPV4}); err != nil {
			return err
		}
		for i := range count {
			if err := netlink.IpsetAdd("large", &netlink.IPSetEntry{IP: net.IPv4(10, 0, byte(i>>8), byte(i)).To4()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(save(t, ns), "add large 10.0."); got != count {
		t.Errorf("got %d elements", got)
	}
}

func TestWithoutThePrivilegeTheErrorSaysSo(t *testing.T) {
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "privilege")
	err := ns.DoUnprivileged(func() error {
		_, err := Save()
		return err
	})
	if !errors.Is(err, unix.EPERM) || !strings.HasSuffix(err.Error(), ": run as root, or with CAP_NET_ADMIN in the namespace") {
		t.Errorf("got %v", err)
	}
}
