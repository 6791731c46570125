package conns

import (
	"encoding/json"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// message is the body of a message about a TCP connection.
func message() []byte {
	addrs := func(from, to byte) netlink.Attribute {
		return netlink.Nested(ctaTupleIP, netlink.Attribute{Kind: ctaIPv4Source, Data: []byte{10, 0, 0, from}}, netlink.Attribute{Kind: ctaIPv4Dest, Data: []byte{10, 0, 0, to}})
	}
	ports := netlink.Nested(ctaTupleProto, netlink.Attribute{Kind: ctaProtoNumber, Data: []byte{unix.IPPROTO_TCP}},
		netlink.Attribute{Kind: ctaProtoSource, Data: []byte{0, 1}}, netlink.Attribute{Kind: ctaProtoDest, Data: []byte{0, 2}})
	return netlink.AppendAttributes([]byte{unix.AF_INET, 0, 0, 0},
		netlink.Nested(ctaTupleOrig, addrs(1, 2), ports), netlink.Nested(ctaTupleReply, addrs(3, 1), ports),
		netlink.Number(ctaStatus, 0x0a), netlink.Number(ctaTimeout, 110), netlink.Attribute{Kind: ctaZone, Data: []byte{0, 2}},
		netlink.Nested(ctaProtoInfo, netlink.Nested(ctaInfoTCP, netlink.Attribute{Kind: ctaTCPState, Data: []byte{7}})),
		netlink.Nested(ctaCountersOrig, netlink.Attribute{Kind: ctaCountPackets, Data: []byte{7: 5}}),
		netlink.Nested(ctaTimestamp, netlink.Attribute{Kind: ctaTimestampStart, Data: []byte{0, 0, 0, 0, 0x3b, 0x9a, 0xca, 0}}))
}

func TestParseFlow(t *testing.T) {
	f, ok := parseFlow(message())
	got, err := json.Marshal(f)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	f.Start = nil
	const want = `{"protocol":"tcp","original":{"source":"10.0.0.1:1","destination":"10.0.0.2:2"},"reply":{"source":"10.0.0.3:1","destination":"10.0.0.1:2"},` +
		`"state":"TIME_WAIT","status":["seen-reply"],"expires":110,"mark":0,"zone":2,"sent":{"packets":5,"bytes":0}`
	if text := string(got); len(text) < len(want) || text[:len(want)] != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	whole := message()
	for end := range whole {
		if f, ok := parseFlow(whole[:end:end]); ok && (f.Protocol != "tcp" || f.Original.Source.Port() != 1) {
			t.Errorf("of %d bytes: %+v", end, f)
		}
	}
}

func FuzzParseFlow(f *testing.F) {
	f.Add(message())
	f.Fuzz(func(t *testing.T, body []byte) {
		if flow, ok := parseFlow(body); ok && (flow.Protocol == "" || !flow.Original.Source.IsValid() || !flow.Reply.Destination.IsValid()) {
			t.Errorf("%+v", flow)
		}
	})
}
