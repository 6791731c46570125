package iptsave

import (
	"errors"
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

var stateBits = map[string]uint64{
	"INVALID": trace.CTInvalid, "ESTABLISHED": trace.CTEstablished, "RELATED": trace.CTRelated, "NEW": trace.CTNew, "UNTRACKED": trace.CTUntracked,
}

var virtualStates = map[string]uint64{"SNAT": trace.StatusSNAT, "DNAT": trace.StatusDNAT}

func ctState(p *parser, args []string, text string) error {
	var states, status uint64
	for name := range strings.SplitSeq(args[0], ",") {
		state, isState := stateBits[name]
		bit, isStatus := virtualStates[name]
		if !isState && !isStatus {
			return fmt.Errorf("state %q is not known", name)
		}
		states |= state
		status |= bit
	}
	either := []trace.Match{anyBit(trace.CTState, states, text)}
	if status != 0 {
		either = append(either, anyBit(trace.CTStatus, status, text))
	}
	p.add(trace.AnyOf{Matches: either, Not: p.not, Text: text})
	return nil
}

// anyBit holds if the field has one of the bits.
func anyBit(f trace.Field, bits uint64, text string) trace.Match {
	return trace.Match{Left: trace.Mask(f, bits), Not: true, Right: trace.NewSet(trace.Just(trace.Number(uint8(0)))), Text: text}
}

var statusBits = map[string]uint64{"NONE": 0, "EXPECTED": 1, "SEEN_REPLY": trace.StatusSeenReply, "ASSURED": 4, "CONFIRMED": trace.StatusConfirmed}

func ctStatus(p *parser, args []string, text string) error {
	bits, err := sum(args[0], statusBits)
	if err != nil {
		return err
	}
	if bits&^(trace.StatusSeenReply|trace.StatusConfirmed) != 0 {
		return errors.New("a walk does not know these bits")
	}
	p.add(isTracked(text))
	if bits == 0 { // NONE holds for none
		p.match(trace.CTStatus, trace.NewSet(), text)
		return nil
	}
	p.add(trace.AnyOf{Matches: []trace.Match{anyBit(trace.CTStatus, bits, text)}, Not: p.not, Text: text})
	return nil
}

func ctDir(p *parser, args []string, text string) error {
	direction := map[string]uint8{"ORIGINAL": 0, "REPLY": 1}
	number, ok := direction[args[0]]
	if !ok {
		return fmt.Errorf("direction %q is not known", args[0])
	}
	p.match(trace.CTDir, trace.NewSet(trace.Just(trace.Number(number))), text)
	return nil
}

// ctProtocol is that of the connection, which an untracked packet lacks.
func ctProtocol(p *parser, args []string, text string) error {
	p.add(isTracked(text))
	return protocol(p, args, text)
}

func isTracked(text string) trace.Match {
	return trace.Match{Left: trace.CTDir, Right: trace.NewSet(trace.Range{Hi: trace.Number(uint8(1))}), Text: text}
}
