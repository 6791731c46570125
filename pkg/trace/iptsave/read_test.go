package iptsave

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

const node = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.108.94.160/32 -p tcp -m comment --comment "nginx cluster IP" -m tcp --dport 80 -j KUBE-SVC
-A KUBE-SVC ! -s 10.224.0.0/16 -d 10.108.94.160/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC -j KUBE-SEP-2
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.224.1.14:80
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.224.2.16:80
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -d 10.244.0.0/16 -j ACCEPT
-A FORWARD -m foo --bar 1 -j ACCEPT
COMMIT
`

func TestWalk(t *testing.T) {
	tables, err := Read([]byte(node), trace.IP, Unnamed, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []trace.Packet{
		{Direction: trace.Out, Protocol: unix.IPPROTO_TCP, Dst: netip.MustParseAddrPort("10.108.94.160:80"), Src: netip.MustParseAddrPort("10.0.0.1:40000"), ToInterface: "flannel.1"},
		{Direction: trace.In, Interface: "flannel.1", Protocol: unix.IPPROTO_TCP, Dst: netip.MustParseAddrPort("10.224.2.16:80"), Src: netip.MustParseAddrPort("10.224.0.0:40000"), ToInterface: "cni0"},
	} {
		r, err := trace.Walk(&trace.Namespace{Tables: tables}, p)
		if err != nil {
			t.Fatal(err)
		}
		dump(t, r.Ways, "")
	}
}

func dump(t *testing.T, ways []trace.Way, in string) {
	for _, w := range ways {
		t.Logf("%sway %v %s at %+v: %s; %+v", in, w.Probability, w.Verdict, w.At, w.Reason, w.Packet)
		for _, s := range w.Steps {
			text := s.Text
			if s.Rule != nil {
				text = s.Rule.Chain.Name + " " + s.Rule.Text
			}
			t.Logf("%s  %s %s => %s [%s %s %v]", in, s.Hook, text, s.Effect, s.Unknown, s.Assumed, s.Odds)
		}
		dump(t, w.Outcomes, in+"    ")
	}
}
