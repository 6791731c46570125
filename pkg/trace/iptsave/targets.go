package iptsave

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// target is what a rule does, while its options are read.
type target struct {
	name    string
	effects []trace.Statement // in the order in which they happen
	unknown []string          // options that are not known
	masks   map[string]uint32 // of CONNMARK
	verb    string            // of CONNMARK: save or restore
	proxy   trace.TProxy
	with    string
}

// verdicts are the targets without options that end a chain.
var verdicts = map[string]trace.VerdictKind{
	"ACCEPT": trace.Accept, "DROP": trace.Drop, "RETURN": trace.Return, "QUEUE": trace.Queue, "NFQUEUE": trace.Queue, "REJECT": trace.Reject,
}

// silent targets change nothing that decides over the packet's way.
var silent = []string{
	"LOG", "NFLOG", "ULOG", "AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "DSCP", "ECN", "HL", "IDLETIMER", "LED", "RATEEST", "SECMARK", "TCPMSS",
	"TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL",
}

// known are the other targets that finish knows.
var known = []string{"MARK", "CONNMARK", "REDIRECT", "DNAT", "SNAT", "MASQUERADE", "NETMAP", "TPROXY", "CT", "NOTRACK", "SET"}

var targetOptions = map[string]option{
	"--set-xmark":      {1, setMark(func(_, v, m uint32) (uint32, uint32) { return v, m }), []string{"MARK", "CONNMARK"}},
	"--set-mark":       {1, setMark(func(_, v, m uint32) (uint32, uint32) { return v, v | m }), []string{"MARK", "CONNMARK"}},
	"--and-mark":       {1, setMark(func(_, v, _ uint32) (uint32, uint32) { return 0, ^v }), []string{"MARK", "CONNMARK"}},
	"--or-mark":        {1, setMark(func(_, v, _ uint32) (uint32, uint32) { return v, v }), []string{"MARK", "CONNMARK"}},
	"--xor-mark":       {1, setMark(func(_, v, _ uint32) (uint32, uint32) { return v, 0 }), []string{"MARK", "CONNMARK"}},
	"--save-mark":      {0, copyMark, []string{"CONNMARK"}},
	"--restore-mark":   {0, copyMark, []string{"CONNMARK"}},
	"--nfmask":         {1, connMask, []string{"CONNMARK"}},
	"--ctmask":         {1, connMask, []string{"CONNMARK"}},
	"--mask":           {1, connMask, []string{"CONNMARK"}},
	"--to-ports":       {1, toPorts, []string{"REDIRECT", "MASQUERADE"}},
	"--to-destination": {1, toAddress(trace.DNAT), []string{"DNAT"}},
	"--to-source":      {1, toAddress(trace.SNAT), []string{"SNAT"}},
	"--to":             {1, netmap, []string{"NETMAP"}},
	"--random":         {0, nothing, []string{"REDIRECT", "DNAT", "SNAT", "MASQUERADE"}},
	"--random-fully":   {0, nothing, []string{"SNAT", "MASQUERADE"}},
	"--persistent":     {0, nothing, []string{"DNAT", "SNAT"}},
	"--on-port":        {1, onPort, []string{"TPROXY"}},
	"--on-ip":          {1, onIP, []string{"TPROXY"}},
	"--tproxy-mark":    {1, tproxyMark, []string{"TPROXY"}},
	"--reject-with":    {1, rejectWith, []string{"REJECT"}},
	"--notrack":        {0, noTrack, []string{"CT"}},
	"--zone":           {1, zone, []string{"CT"}},
	"--zone-orig":      {1, zone, []string{"CT"}},
	"--zone-reply":     {1, nothing, []string{"CT"}},
	"--helper":         {1, nothing, []string{"CT"}},
	"--timeout":        {1, nothing, []string{"CT", "SET"}},
	"--ctevents":       {1, nothing, []string{"CT"}},
	"--expevents":      {1, nothing, []string{"CT"}},
	"--add-set":        {2, changeSet(true), []string{"SET"}},
	"--del-set":        {2, changeSet(false), []string{"SET"}},
	"--exist":          {0, nothing, []string{"SET"}},
	"--queue-num":      {1, nothing, []string{"NFQUEUE"}},
	"--queue-balance":  {1, nothing, []string{"NFQUEUE"}},
	"--queue-bypass":   {0, nothing, []string{"NFQUEUE"}},
}

func jump(p *parser, args []string, _ string) error {
	p.target.name = args[0]
	return nil
}

func goTo(p *parser, args []string, _ string) error {
	p.add(trace.Verdict{Kind: trace.Goto, Chain: args[0]})
	return nil
}

// finish adds what the target does.
func (p *parser) finish() {
	t := &p.target
	switch kind, isVerdict := verdicts[t.name]; {
	case t.name == "":
	case p.chain.Table.Chain(t.name) != nil:
		p.add(trace.Verdict{Kind: trace.Jump, Chain: t.name})
	case slices.Contains(silent, t.name):
		p.add(trace.Silent{Text: "-j " + t.name})
	case isVerdict && kind == trace.Reject && t.with == "":
		t.with = "icmp-port-unreachable"
		fallthrough
	case isVerdict:
		p.add(trace.Verdict{Kind: kind, With: t.with})
	case len(t.unknown) > 0 || !slices.Contains(known, t.name):
		p.add(trace.UnknownEffect{Text: strings.Join(append([]string{"-j " + t.name}, t.unknown...), " ")})
	default:
		p.effects()
	}
}

// effects adds what a target with options does.
func (p *parser) effects() {
	t := &p.target
	switch t.name {
	case "CONNMARK":
		if t.verb != "" {
			p.add(t.connMark())
		}
	case "MASQUERADE":
		p.add(trace.NAT{Kind: trace.Masquerade})
		return
	case "REDIRECT":
		if len(t.effects) == 0 {
			p.add(trace.NAT{Kind: trace.Redirect})
		}
	case "NOTRACK":
		p.add(trace.NoTrack{})
	case "TPROXY":
		p.add(t.proxy)
	}
	for _, e := range t.effects {
		p.add(e)
	}
	if t.name == "TPROXY" {
		p.add(trace.Verdict{Kind: trace.Accept})
	}
}

func setMark(bits func(old, value, mask uint32) (v, m uint32)) func(*parser, []string, string) error {
	return func(p *parser, args []string, _ string) error {
		value, mask, err := valueMask(args[0])
		if err != nil {
			return err
		}
		f := trace.Mark
		if p.target.name == "CONNMARK" {
			f = trace.CTMark
		}
		value, mask = bits(0, value, mask)
		p.target.effects = append(p.target.effects, trace.Assign{Field: f, Value: trace.SetBits(f, value, mask), IfAny: true})
		return nil
	}
}

func copyMark(p *parser, _ []string, text string) error {
	p.target.verb = strings.TrimSuffix(strings.TrimPrefix(text, "--"), "-mark")
	return nil
}

func connMask(p *parser, args []string, text string) error {
	_, mask, err := valueMask("0/" + args[0])
	if err != nil {
		return err
	}
	if p.target.masks == nil {
		p.target.masks = map[string]uint32{}
	}
	name, _, _ := strings.Cut(text, " ")
	if name != "--ctmask" {
		p.target.masks["nf"] = mask
	}
	if name != "--nfmask" {
		p.target.masks["ct"] = mask
	}
	return nil
}

// connMark is CONNMARK's --save-mark or --restore-mark: what is copied to loses the bits of its own mask, then those that the other has
// under its mask are inverted in it.
func (t *target) connMark() trace.Statement {
	mask := func(name string) uint64 {
		if m, ok := t.masks[name]; ok {
			return uint64(m)
		}
		return 0xffffffff
	}
	from, to, fromMask, toMask := trace.Mark, trace.CTMark, mask("nf"), mask("ct")
	if t.verb == "restore" {
		from, to, fromMask, toMask = trace.CTMark, trace.Mark, mask("ct"), mask("nf")
	}
	return trace.Assign{Field: to, Value: trace.Xor{A: trace.Mask(to, uint64(^uint32(toMask))), B: trace.Mask(from, fromMask)}, IfAny: true}
}

func toPorts(p *parser, args []string, _ string) error {
	lo, hi, isRange := strings.Cut(args[0], "-")
	if !isRange {
		hi = lo
	}
	r, err := numbers(lo, hi, 16)
	if err != nil || p.target.name == "MASQUERADE" {
		return err
	}
	p.target.effects = append(p.target.effects, trace.NAT{Kind: trace.Redirect, To: trace.Const{r.Lo}, MaxPort: uint16(r.Hi.Num)})
	return nil
}

func toAddress(kind trace.NATKind) func(*parser, []string, string) error {
	return func(p *parser, args []string, _ string) error {
		addrs, ports := splitPort(args[0])
		nat := trace.NAT{Kind: kind}
		var to trace.Const
		if lo, hi, isRange := strings.Cut(addrs, "-"); isRange && lo != hi {
			return fmt.Errorf("which address of %s the kernel takes is not known", addrs)
		}
		if addrs != "" {
			addr, err := netip.ParseAddr(addrs)
			if err != nil {
				return fmt.Errorf("%q is no address", addrs)
			}
			to = append(to, trace.Addr(addr))
		}
		if ports != "" {
			lo, hi, isRange := strings.Cut(ports, "-")
			if !isRange {
				hi = lo
			}
			if strings.Contains(hi, "/") {
				return errors.New("which port the kernel takes is not known")
			}
			r, err := numbers(lo, hi, 16)
			if err != nil {
				return err
			}
			to, nat.MaxPort = append(to, r.Lo), uint16(r.Hi.Num)
		}
		nat.To = to
		p.target.effects = append(p.target.effects, nat)
		return nil
	}
}

// splitPort splits "10.0.0.1:80", "[fd00::1]:80", ":80" and what has no port.
func splitPort(s string) (addr, port string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		addr, port, _ = strings.Cut(rest, "]")
		return addr, strings.TrimPrefix(port, ":")
	}
	if strings.Count(s, ":") > 1 {
		return s, ""
	}
	addr, port, _ = strings.Cut(s, ":")
	return addr, port
}

func netmap(p *parser, args []string, _ string) error {
	prefix, err := netip.ParsePrefix(args[0])
	if err != nil {
		return fmt.Errorf("%q is no prefix", args[0])
	}
	p.target.effects = append(p.target.effects, trace.NAT{Kind: trace.NetMap, Net: prefix})
	return nil
}

func onPort(p *parser, args []string, _ string) error {
	port, err := strconv.ParseUint(args[0], 10, 16)
	p.target.proxy.Port = uint16(port)
	return err
}

func onIP(p *parser, args []string, _ string) (err error) {
	p.target.proxy.Addr, err = netip.ParseAddr(args[0])
	return err
}

func tproxyMark(p *parser, args []string, _ string) error {
	value, mask, err := valueMask(args[0])
	if err == nil {
		p.target.effects = append(p.target.effects, trace.Assign{Field: trace.Mark, Value: trace.SetBits(trace.Mark, value, mask)})
	}
	return err
}

func rejectWith(p *parser, args []string, _ string) error {
	p.target.with = args[0]
	return nil
}

func noTrack(p *parser, _ []string, _ string) error {
	p.target.effects = append(p.target.effects, trace.NoTrack{})
	return nil
}

func zone(p *parser, args []string, _ string) error {
	n, err := strconv.ParseUint(args[0], 0, 16)
	if err != nil {
		return fmt.Errorf("%q is no zone", args[0])
	}
	p.target.effects = append(p.target.effects, trace.SetZone{Zone: uint16(n)})
	return nil
}
