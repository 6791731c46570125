package nftjson_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
)

// ruleset is nft's JSON with a table inet t that has a chain c and what is given.
func ruleset(more ...string) []byte {
	all := append([]string{
		`{"metainfo":{"version":"1.0.6","json_schema_version":1}}`, `{"table":{"family":"inet","name":"t","handle":1}}`,
		`{"chain":{"family":"inet","table":"t","name":"c","handle":1}}`,
	}, more...)
	return []byte(`{"nftables":[` + strings.Join(all, ",") + `]}`)
}

func rule(statements string) string {
	return `{"rule":{"family":"inet","table":"t","chain":"c","handle":7,"expr":[` + statements + `]}}`
}

func statements(t *testing.T, more ...string) []trace.Statement {
	t.Helper()
	tables, err := nftjson.Read(ruleset(more...))
	if err != nil {
		t.Fatal(err)
	}
	rules := rulesOf(t, tables[0].Chain("c"))
	if len(rules) != 1 {
		t.Fatalf("%d rules, want one", len(rules))
	}
	return rules[0].Statements
}

func rulesOf(t *testing.T, c *trace.Chain) []*trace.Rule {
	t.Helper()
	rules, err := c.Rules()
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func num(n uint64) trace.Value { return trace.Value{Num: n} }

func is(f trace.Field, n uint64, text string) trace.Match {
	return trace.Match{Left: f, Right: trace.NewSet(trace.Just(num(n))), Text: text}
}

func address(s string) trace.Value { return trace.Addr(netip.MustParseAddr(s)) }

func TestStatements(t *testing.T) {
	t.Parallel()
	ipv4, tcp := is(trace.NFProto, 2, "meta nfproto ipv4"), is(trace.L4Proto, 6, "meta l4proto tcp")
	const dport = `{"payload":{"protocol":"tcp","field":"dport"}}`
	for _, c := range []struct {
		json string
		want []trace.Statement
	}{
		{`{"accept":null}`, []trace.Statement{trace.Verdict{Kind: trace.Accept}}},
		{`{"jump":{"target":"d"}}`, []trace.Statement{trace.Verdict{Kind: trace.Jump, Chain: "d"}}},
		{`{"queue":{"num":3,"flags":"bypass"}}`, []trace.Statement{trace.Verdict{Kind: trace.Queue}}},
		{`{"reject":{"type":"icmpx","expr":"port-unreachable"}}`, []trace.Statement{trace.Verdict{Kind: trace.Reject, With: "icmpx-port-unreachable"}}},
		{`{"reject":{"type":"tcp reset"}}`, []trace.Statement{tcp, trace.Verdict{Kind: trace.Reject, With: "tcp-reset"}}},
		{`{"reject":{"type":"icmp","expr":"host-unreachable"}}`, []trace.Statement{ipv4, trace.Verdict{Kind: trace.Reject, With: "icmp-host-unreachable"}}},
		{`{"notrack":null}`, []trace.Statement{trace.NoTrack{}}},
		{`{"mangle":{"key":{"ct":{"key":"zone"}},"value":5}}`, []trace.Statement{trace.SetZone{Zone: 5}}},
		{`{"dnat":{"family":"ip","addr":"10.0.0.1","port":{"range":[80,90]}}}`, []trace.Statement{
			trace.NAT{Kind: trace.DNAT, Only: trace.IP, To: trace.Concat{trace.Const{address("10.0.0.1")}, trace.Const{num(80)}}, MaxPort: 90}}},
		{`{"dnat":{"family":"ip","addr":{"prefix":{"addr":"10.0.0.0","len":24}},"flags":"netmap","type_flags":"prefix"}}`, []trace.Statement{
			trace.NAT{Kind: trace.DNAT, Only: trace.IP, Net: netip.MustParsePrefix("10.0.0.0/24")}}},
		{`{"snat":{"family":"ip","addr":{"range":["10.0.0.1","10.0.0.2"]}}}`, []trace.Statement{trace.NAT{Kind: trace.SNAT, Only: trace.IP, To: trace.Lookup{
			Key: trace.Numgen{Mod: 2}, Map: &trace.Set{Elements: []trace.Element{
				{Key: []trace.Range{trace.Just(num(0))}, Data: []trace.Value{address("10.0.0.1")}},
				{Key: []trace.Range{trace.Just(num(1))}, Data: []trace.Value{address("10.0.0.2")}},
			}},
		}}}},
		{`{"dnat":{"family":"ip","addr":{"map":{"key":{"numgen":{"mode":"random","mod":2,"offset":3}},"data":{"set":[[3,{"concat":["10.0.0.1",80]}]]}}}}}`,
			[]trace.Statement{trace.NAT{Kind: trace.DNAT, Only: trace.IP, To: trace.Lookup{Key: trace.Numgen{Mod: 2, Offset: 3}, Map: &trace.Set{
				Elements: []trace.Element{{Key: []trace.Range{trace.Just(num(3))}, Data: []trace.Value{address("10.0.0.1"), num(80)}}},
			}}}}},
		{`{"dnat":{"family":"ip","addr":{"range":["10.0.0.1","10.1.0.2"]}}}`,
			[]trace.Statement{trace.NAT{Kind: trace.DNAT, Only: trace.IP, To: trace.UnknownExpr{Text: "10.0.0.1-10.1.0.2"}}}},
		{`{"redirect":{"port":8080}}`, []trace.Statement{trace.NAT{Kind: trace.Redirect, To: trace.Const{num(8080)}}}},
		{`{"redirect":null}`, []trace.Statement{trace.NAT{Kind: trace.Redirect}}},
		{`{"masquerade":{"flags":"fully-random"}}`, []trace.Statement{trace.NAT{Kind: trace.Masquerade}}},
		{`{"tproxy":{"family":"ip","addr":"127.0.0.1","port":15001}}`, []trace.Statement{ipv4,
			trace.TProxy{Addr: netip.MustParseAddr("127.0.0.1"), Port: 15001}}},
		{`{"vmap":{"key":` + dport + `,"data":{"set":[[80,{"drop":null}],["*",{"goto":{"target":"d"}}]]}}}`, []trace.Statement{tcp,
			trace.VerdictMap{Key: trace.Dport, Text: "tcp dport vmap { 80 : drop, * : goto d }", Map: &trace.Set{Elements: []trace.Element{
				{Key: []trace.Range{trace.Just(num(80))}, Verdict: trace.Verdict{Kind: trace.Drop}},
				{Verdict: trace.Verdict{Kind: trace.Goto, Chain: "d"}},
			}}}}},
		{`{"limit":{"rate":5,"burst":5,"per":"second"}}`,
			[]trace.Statement{trace.UnknownMatch{Text: "limit rate 5/second", Reason: "it depends on the packets before"}}},
		{`{"log":{"prefix":"x"}}`, []trace.Statement{trace.Silent{Text: `log prefix "x"`}}},
		{`{"xt":{"type":"match","name":"comment"}}`, []trace.Statement{trace.Silent{Text: "xt match comment"}}},
		{`{"xt":{"type":"match","name":"u32"}}`, []trace.Statement{trace.UnknownMatch{
			Text: "xt match u32", Reason: "nft prints only its name: read iptables' tables from iptables-save"}}},
		{`{"fancy":{"a":1}}`, []trace.Statement{trace.UnknownEffect{Text: `fancy {"a":1}`, Reason: "detour does not know this statement of nft"}}},
		{`5`, []trace.Statement{trace.UnknownEffect{Text: "5", Reason: "detour does not know this statement of nft"}}},
		{`{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}}`, []trace.Statement{trace.Match{
			Left: trace.Mask(trace.CTState, 6), Not: true, Right: trace.NewSet(trace.Just(num(0))), Text: "ct state established,related"}}},
		{`{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":{"set":["eth*","a\\*"]}}}`, []trace.Statement{trace.Match{
			Left: trace.IIFName, Right: trace.NewSet(trace.Wildcard("eth"), trace.Just(trace.Name("a*"))), Text: `iifname { "eth*", "a\*" }`}}},
		// As nft 1.1 writes flags.
		{`{"match":{"op":"==","left":{"&":[{"payload":{"protocol":"tcp","field":"flags"}},{"|":["syn","ack"]}]},"right":"syn"}}`,
			[]trace.Statement{tcp, trace.Match{Left: trace.And{A: trace.TCPFlags, B: trace.Const{num(18)}}, Right: trace.NewSet(trace.Just(num(2))),
				Text: "tcp flags & (syn | ack) == syn"}}},
		{`{"match":{"op":"in","left":{"ct":{"key":"status"}},"right":"assured"}}`, []trace.Statement{trace.UnknownMatch{
			Text: "ct status assured", Reason: "a bit of ct status that only the kernel knows decides"}}},
		{`{"match":{"op":"==","left":` + dport + `,"right":"@gone"}}`, []trace.Statement{tcp, trace.UnknownMatch{
			Text: "tcp dport @gone", Reason: "the file does not have set gone"}}},
	} {
		if got := statements(t, rule(c.json)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %#v\nwant %#v", c.json, got, c.want)
		}
	}
}

func TestElementsOfSets(t *testing.T) {
	t.Parallel()
	set := `{"map":{"family":"inet","name":"m","table":"t","type":["ipv4_addr","inet_service"],"map":"verdict","elem":[` +
		`[{"elem":{"val":{"concat":[{"prefix":{"addr":"10.0.0.0","len":8}},{"range":[1,5]}]},"timeout":60,"comment":"x"}},{"accept":null}]]}}`
	key := `{"concat":[{"payload":{"protocol":"ip","field":"daddr"}},{"payload":{"protocol":"th","field":"dport"}}]}`
	got := statements(t, set, rule(`{"vmap":{"key":`+key+`,"data":"@m"}}`))
	want := []trace.Element{{
		Key:     []trace.Range{trace.Prefix(netip.MustParsePrefix("10.0.0.0/8")), {Lo: num(1), Hi: num(5)}},
		Verdict: trace.Verdict{Kind: trace.Accept},
	}}
	if m, ok := got[len(got)-1].(trace.VerdictMap); !ok || !reflect.DeepEqual(m.Map.Elements, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	strange := `{"set":{"family":"inet","name":"m","table":"t","type":"osf","elem":["Linux"]}}`
	got = statements(t, strange, rule(`{"match":{"op":"==","left":{"payload":{"protocol":"th","field":"dport"}},"right":"@m"}}`))
	if m, ok := got[0].(trace.UnknownMatch); !ok || m.Reason != "set m has an element that is not known: Linux" {
		t.Errorf("got %+v", got)
	}
}

func TestTablesAndChains(t *testing.T) {
	t.Parallel()
	ns := everything(t)
	run(t, ns, "", "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "REDIRECT")
	tables, err := nftjson.Read([]byte(run(t, ns, "", "nft", "-j", "list", "ruleset")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, table := range tables {
		line := fmt.Sprint(table.Family, " ", table.Name, " ", table.Origin, " dormant:", table.Dormant)
		for _, c := range table.Chains {
			if c.Base != nil {
				line += fmt.Sprintf("; %s %s %s %d %d %s", c.Name, c.Base.Type, c.Base.Hook, c.Base.Priority, c.Base.Policy.Kind, c.Base.Device)
			}
		}
		got = append(got, line)
	}
	want := []string{
		"inet t nft dormant:false; pre nat prerouting -95 2 ; post nat postrouting 100 2 ; tp filter prerouting -150 3 ; filt filter forward -10 3 ",
		"ip t4 nft dormant:false; o filter output 0 2 ",
		"ip6 t6 nft dormant:false; o filter output 0 3 ; n nat output 0 2 ",
		"netdev n nft dormant:false; i filter ingress 0 2 ; two filter ingress 5 2 ", // nft 1.0.6 leaves the devices out
		"inet asleep nft dormant:true; o filter output 0 3 ",
		"ip nat iptables-nft dormant:false; OUTPUT nat output -100 2 ",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCommentsMayHaveAnything(t *testing.T) {
	t.Parallel()
	tables, err := nftjson.Read(ruleset(`{"rule":{"comment":"a \"}]\\","family":"inet","table":"t","chain":"c","handle":7,"expr":[{"accept":null}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	rules := rulesOf(t, tables[0].Chain("c"))
	if len(rules) != 1 || rules[0].Comment != `a "}]\` || rules[0].Text != "accept" || rules[0].Handle != 7 {
		t.Errorf("got %+v", rules)
	}
}

func TestDevicesAndFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ dev, flags, want string }{
		{`"eth0"`, `["owner"]`, "false eth0"}, {`["eth0","eth1"]`, `"dormant"`, "true eth0 eth1"}, {`[]`, `["owner","dormant"]`, "true "},
	} {
		tables, err := nftjson.Read([]byte(`{"nftables":[{"table":{"family":"netdev","name":"t","flags":` + c.flags + `}},` +
			`{"chain":{"family":"netdev","table":"t","name":"i","type":"filter","hook":"ingress","prio":-5,"policy":"drop","dev":` + c.dev + `}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		var devices []string
		for _, chain := range tables[0].Chains {
			devices = append(devices, chain.Base.Device)
		}
		if got := fmt.Sprint(tables[0].Dormant, " ", strings.Join(devices, " ")); got != c.want {
			t.Errorf("%s %s: got %s, want %s", c.dev, c.flags, got, c.want)
		}
	}
}

func TestReadSaysWhatABadFileIs(t *testing.T) {
	t.Parallel()
	whole := ruleset(rule(`{"accept":null}`))
	for _, c := range []struct{ data, want string }{
		{"", "read nft's JSON: the file is empty: get the right file with `nft -j list ruleset`"},
		{string(whole[:len(whole)-9]), fmt.Sprintf("the file is truncated after %d bytes", len(whole)-9)},
		{"# Warning: table ip nat is managed by iptables-nft, do not touch!\ntable ip nat {\n}\n", "nft's own language, not JSON: add -j"},
		{"*filter\n:INPUT ACCEPT\nCOMMIT\n", "this is not JSON"},
		{`{"nftables":[]} x`, "byte 17 is not JSON"},
		{`[{"dst":"default"}]`, "another program's JSON, a list"},
		{`{"kind":"Pod"}`, `another program's JSON, without "nftables"`},
		{`{"nftables":5}`, "\"nftables\" is no list"},
		{`{"nftables":[{"table":{"family":5}}]}`, "element 1 is not as nft prints it"},
		{`{"nftables":[}]}`, "is not JSON"},
	} {
		_, err := nftjson.Read([]byte(c.data))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want %s", c.data, err, c.want)
		}
	}
}

// names are lists of nft's constants by an expression of their type.
func TestNamesAreThoseOfNft(t *testing.T) {
	t.Parallel()
	ns := everything(t)
	for _, expr := range []string{
		"icmp type", "icmp code", "icmpv6 type", "icmpv6 code", "tcp flags", "ct state", "ct status", "ct direction", "fib daddr type", "meta nfproto",
	} {
		for line := range strings.Lines(run(t, ns, "", "nft", append([]string{"describe"}, strings.Fields(expr)...)...)) {
			words := strings.Fields(line)
			if len(words) != 2 || !strings.HasPrefix(line, "\t") {
				continue
			}
			left := fmt.Sprintf(`{"payload":{"protocol":%q,"field":%q}}`, strings.Fields(expr)[0], strings.Fields(expr)[1])
			switch words := strings.Fields(expr); words[0] {
			case "ct", "meta":
				left = fmt.Sprintf(`{%q:{"key":%q}}`, words[0], words[1])
			case "fib":
				left = `{"fib":{"result":"type","flags":["daddr"]}}`
			}
			read := statements(t, rule(fmt.Sprintf(`{"match":{"op":"==","left":%s,"right":{"set":[%q]}}}`, left, words[0])))
			m, ok := read[len(read)-1].(trace.Match)
			if expr == "ct status" {
				ok = true // a walk does not know all of its bits
				m.Right = nil
			}
			if !ok || m.Right != nil && (m.Right.Unknown != "" || fmt.Sprint(m.Right.Elements[0].Key[0].Lo.Num) != value(words[1])) {
				t.Errorf("%s %s: got %+v, nft says %s", expr, words[0], m.Right, words[1])
			}
		}
	}
}

// value is a number as nft describes it, in decimal.
func value(s string) string {
	var n uint64
	if _, err := fmt.Sscanf(s, "0x%x", &n); err == nil {
		return fmt.Sprint(n)
	}
	return s
}

// many is a ruleset of the size of a node with thousands of services.
func many(rules int) []byte {
	all := make([]string, 0, 2*rules)
	for i := range rules {
		chain := fmt.Sprintf("service-%d", i/3)
		if i%3 == 0 {
			all = append(all, fmt.Sprintf(`{"chain": {"family": "inet", "table": "t", "name": %q, "handle": %d}}`, chain, i+10))
		}
		all = append(all, fmt.Sprintf(`{"rule": {"family": "inet", "table": "t", "chain": %q, "handle": %d, "expr": [`+
			`{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "172.30.0.41"}}, `+
			`{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}, `+
			`{"vmap": {"key": {"numgen": {"mode": "random", "mod": 2, "offset": 0}}, "data": {"set": [[0, {"goto": {"target": "endpoint-a"}}], `+
			`[1, {"goto": {"target": "endpoint-b"}}]]}}}]}}`, chain, i+100000))
	}
	return ruleset(all...)
}

func BenchmarkRead30000Rules(b *testing.B) {
	data := many(30000)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		tables, err := nftjson.Read(data)
		if err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(tables)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(ruleset(rule(`{"match":{"op":"==","left":{"&":[{"payload":{"protocol":"tcp","field":"flags"}},["syn"]]},"right":{"set":[5,{"range":[1,2]}]}}},{"accept":null}`)))
	f.Add(ruleset(rule(`{"dnat":{"addr":{"map":{"key":{"numgen":{"mod":2}},"data":{"set":[[0,{"concat":["10.0.0.1",80]}]]}}},"port":{"range":[1,2]}}},` +
		`{"set":{"op":"add","elem":{"elem":{"val":{"meta":{"key":"mark"}}}},"set":"@s","stmt":[{"limit":{}}]}},{"jhash":null},{"log":{"flags":[5]}}`)))
	f.Add(ruleset(`{"map":{"family":"inet","table":"t","name":"m","type":{"typeof":{"concat":[]}},"map":"verdict","elem":[["*",{"drop":null}]]}}`,
		rule(`{"vmap":{"key":{"ct":{"key":"ip saddr","dir":"original"}},"data":"@m"}}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		tables, err := nftjson.Read(data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
			return
		}
		for _, table := range tables {
			for _, chain := range table.Chains {
				for _, r := range rulesOf(t, chain) {
					if len(r.Statements) == 0 && r.Text != "" {
						t.Errorf("%q has no statements", r.Text)
					}
				}
			}
		}
		packet := trace.Packet{Direction: trace.Out, Protocol: 6, Dst: netip.MustParseAddrPort("1.1.1.1:80")}
		_, _ = trace.Walk(&trace.Namespace{Tables: tables}, packet)
	})
}

func FuzzRule(f *testing.F) {
	for _, seed := range []string{
		`{"match":{"op":"==","left":{"&":[{"payload":{"protocol":"tcp","field":"flags"}},["syn"]]},"right":{"set":[5,{"range":[1,2]}]}}}`,
		`{"match":{"op":"in","left":{"concat":[]},"right":"new"}},{"vmap":{"key":{"concat":[{"meta":{"key":"mark"}}]},"data":{"set":[[1,{"jump":{}}]]}}}`,
		`{"dnat":{"addr":{"range":["::1","ffff::"]},"port":{"map":{"key":{"jhash":{"expr":5}},"data":{"set":[[0,1]]}}},"flags":["x"],"type_flags":"prefix"}}`,
		`{"set":{"op":"add","elem":{"elem":{"val":{"meta":{"key":"mark"}}}},"set":"@s","stmt":[{"limit":{"rate":1}}]}},{"log":{"flags":[5]}},{"ct helper":"x"}`,
		`{"mangle":{"key":{"meta":{"key":"mark"}},"value":{"<<":[{"^":[{"ct":{"key":"mark"}},5,6]},900]}}},{"reject":{}},{"xt":null},"add @m { 1 }",[1],null`,
		`{"jump":{"target":"c"}}`,
		`{"fwd":{"dev":"lo"}},{"tproxy":{"addr":"x","port":-1}},{"quota":{"val":1}},{"queue":{"num":{"range":[1]}}},{"jump":{"target":"c"}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed string) {
		tables, err := nftjson.Read(ruleset(`{"map":{"family":"inet","table":"t","name":"s","type":"mark","elem":[1]}}`,
			`{"chain":{"family":"inet","table":"t","name":"o","type":"filter","hook":"output","prio":0,"policy":"accept"}}`,
			`{"rule":{"family":"inet","table":"t","chain":"o","expr":[{"jump":{"target":"c"}}]}}`, rule(seed)))
		if err != nil {
			return
		}
		packet := trace.Packet{Direction: trace.Out, Protocol: 6, Dst: netip.MustParseAddrPort("1.1.1.1:80")}
		_, _ = trace.Walk(&trace.Namespace{Tables: tables}, packet)
		for _, r := range rulesOf(t, tables[0].Chain("c")) {
			if len(r.Statements) == 0 && r.Text != "" {
				t.Errorf("%q has no statements", r.Text)
			}
		}
	})
}

func TestAnOutlineReadsAChainWhenItIsAskedForIt(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	var asked []string
	tables, err := nftjson.ReadOutline(ruleset(`{"chain":{"family":"inet","table":"t","name":"o","type":"filter","hook":"output","prio":0,"policy":"accept"}}`,
		`{"chain":{"family":"inet","table":"t","name":"bad"}}`), func(family, table, chain string) ([]byte, error) {
		asked = append(asked, family+" "+table+" "+chain)
		switch chain {
		case "o":
			return []byte(`{"nftables":[{"metainfo":{}},{"rule":{"family":"inet","table":"t","chain":"o","handle":5,"expr":[` +
				`{"match":{"op":"==","left":{"meta":{"key":"skuid"}},"right":5}},{"jump":{"target":"bad"}}]}}]}`), nil
		case "bad":
			return nil, failed
		}
		return nil, nil
	})
	if err != nil || asked != nil {
		t.Fatal(asked, err)
	}
	ns := &trace.Namespace{Tables: tables}
	packet := trace.Packet{Direction: trace.Out, Protocol: 6, Dst: netip.MustParseAddrPort("1.1.1.1:80")}
	if _, err := trace.Walk(ns, packet); err != nil || !slices.Equal(asked, []string{"inet t o"}) {
		t.Errorf("asked for %q: %v", asked, err)
	}
	packet.UID = 5
	for range 2 {
		_, err = trace.Walk(ns, packet)
		if !errors.Is(err, failed) || !strings.Contains(err.Error(), "read table inet t chain bad") || len(asked) != 2 {
			t.Errorf("asked for %q: %v", asked, err)
		}
	}
}
