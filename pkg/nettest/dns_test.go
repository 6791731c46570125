package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	dnsCapture = `*nat
-A OUTPUT -m owner --uid-owner 1337 -j RETURN
-A OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 15053
-A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053
COMMIT
`
	// dnsZones keeps what the proxy asks apart from what it is asked.
	dnsZones = `*raw
-A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
-A OUTPUT -p udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2
-A OUTPUT -p udp --dport 53 -j CT --zone 2
-A PREROUTING -p udp --sport 53 -j CT --zone 1
COMMIT
`
)

// A server that is asked over IPv4 and one over IPv6, and where the pod asks from.
var servers = map[netip.AddrPort]netip.Addr{
	netip.MustParseAddrPort("10.96.0.10:53"):   PodIPv4,
	netip.MustParseAddrPort("[fd00:96::a]:53"): PodIPv6,
}

// startDNS starts a real server outside and the proxy's in the pod, which belongs to uid.
func startDNS(t *testing.T, variant, rules string, uid uint32) (app, proxy Process) {
	t.Helper()
	w := StartWorld(t)
	restoreBoth(t, w.Pod, variant, rules)
	for _, s := range []struct {
		p    Process
		port uint16
		txt  string
	}{{own(w.Outside), 53, "the real server"}, {Process{w.Pod, uid, uid}, 15053, "the proxy"}} {
		l, err := s.p.ListenDNS(s.port, s.txt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeOrFail(t, l) })
	}
	return Process{w.Pod, AppUID, AppGID}, Process{w.Pod, 1337, 1337}
}

// query returns the answer or what became of the query instead.
func query(p Process, c Call) string {
	got, err := p.QueryDNS(c, "web.default.svc.cluster.local.")
	if err != nil {
		return err.Error()
	}
	return got
}

// At the same time, over both protocols and families.
func TestDNSCapture(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		app, proxy := startDNS(t, variant, dnsCapture+dnsZones, 1337)
		results := make(chan error)
		expect := func(p Process, c Call, want string) {
			var err error
			if got := query(p, c); got != want {
				err = fmt.Errorf("%s of UID %d to %s: got %s", c.Protocol, p.UID, c.Destination, got)
			}
			results <- err
		}
		const times = 10
		for server := range servers {
			for _, protocol := range []Protocol{TCP, UDP} {
				for range times {
					go expect(app, Call{Protocol: protocol, Destination: server}, "the proxy")
					go expect(proxy, Call{Protocol: protocol, Destination: server}, "the real server")
				}
			}
		}
		var errs []error
		for range len(servers) * 2 * times * 2 {
			errs = append(errs, <-results)
		}
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
	})
}

// From the same port as the application before, within the life of its conntrack entry, the proxy reaches the real server
// only because of the zones; and its answers find back only if they are in the zone of the questions.
func TestDNSFromTheSamePort(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		for _, c := range []struct {
			name, rules string
			uid         uint32 // of the proxy's listener
			want        [3]string
		}{
			{"with zones", dnsCapture + dnsZones, 1337, [3]string{"the proxy", "the real server", "the proxy"}},
			{"without zones", dnsCapture, 1337, [3]string{"the proxy", "the proxy", "the proxy"}},
			{"listener of another user", dnsCapture + dnsZones, 0, [3]string{"timeout", "the real server", "timeout"}},
			{"without rules", "*nat\nCOMMIT\n", 1337, [3]string{"the real server", "the real server", "the real server"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				app, proxy := startDNS(t, variant, c.rules, c.uid)
				for server, source := range servers {
					call := Call{Protocol: UDP, Source: netip.AddrPortFrom(source, 40000), Destination: server}
					for i, p := range []Process{app, proxy, app} {
						call.Timeout = timeFor(c.want[i])
						if got := query(p, call); got != c.want[i] {
							t.Errorf("%s: query %d: got %s, want %s", server, i, got, c.want[i])
						}
					}
				}
			})
		}
	})
}

func TestListenDNSRefusesLongText(t *testing.T) {
	t.Parallel()
	if l, err := (Process{}).ListenDNS(53, strings.Repeat("x", 256)); err == nil {
		t.Errorf("no error, %v", l)
	}
}

func TestQueryDNSErrors(t *testing.T) {
	t.Parallel()
	ns := StartNamespace(t, "dns")
	call := Call{Destination: netip.MustParseAddrPort("[::1]:53")}
	for _, call.Protocol = range []Protocol{TCP, UDP} {
		if got, err := own(ns).QueryDNS(call, "a."); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: got %q, %v", call.Protocol, got, err)
		}
	}
	l, err := own(ns).ListenUDP(53, "no DNS server")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeOrFail(t, l) })
	for _, name := range []string{"a.", "a", ""} {
		if got, err := own(ns).QueryDNS(call, name); err == nil {
			t.Errorf("%q: got %q", name, got)
		}
	}
}

func TestReadDNS(t *testing.T) {
	t.Parallel()
	question := dnsmessage.Question{Name: dnsmessage.MustNewName("a."), Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{question}}
	pack := func(m dnsmessage.Message) []byte {
		packed, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return packed
	}
	answered, err := answerDNS(pack(query), "text")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readDNS(answered, query); err != nil || got != "text" {
		t.Errorf("got %q, %v", got, err)
	}
	if response, err := answerDNS(answered, "text"); err == nil {
		t.Errorf("a response is answered: %q", response)
	}
	if response, err := answerDNS([]byte("?\n"), "text"); err == nil {
		t.Errorf("no query is answered: %q", response)
	}
	other := query
	other.ID = 8
	address := question
	address.Type = dnsmessage.TypeA
	for name, response := range map[string][]byte{
		"no message":    []byte("proxy 15053\n"),
		"a query":       pack(query),
		"another ID":    mustAnswer(t, pack(other)),
		"no TXT record": mustAnswer(t, pack(dnsmessage.Message{Header: query.Header, Questions: []dnsmessage.Question{address}})),
	} {
		if got, err := readDNS(response, query); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func mustAnswer(t *testing.T, query []byte) []byte {
	t.Helper()
	response, err := answerDNS(query, "text")
	if err != nil {
		t.Fatal(err)
	}
	return response
}
