package main

import (
	"github.com/detour-cni/detour/pkg/trace"
)

// README.md documents the JSON of trace.
type jsonTrace struct {
	Packet string    `json:"packet"`
	Ways   []jsonWay `json:"ways"`
	Advice string    `json:"advice"`
}

type jsonWay struct {
	Probability float64       `json:"probability"`
	Verdict     trace.Outcome `json:"verdict"`
	At          *jsonPlace    `json:"at,omitempty"`
	Reason      string        `json:"reason,omitempty"`
	Port        uint16        `json:"port,omitempty"`
	Packet      jsonPacket    `json:"packet"`
	Steps       []jsonStep    `json:"steps"`
	Outcomes    []jsonWay     `json:"outcomes,omitempty"`
}

// jsonPlace is a rule, or a base chain whose policy decided.
type jsonPlace struct {
	Family trace.Family `json:"family"`
	Table  string       `json:"table"`
	Origin string       `json:"origin"`
	Chain  string       `json:"chain"`
	Rule   int          `json:"rule,omitempty"`
	Policy bool         `json:"policy"`
	Text   string       `json:"text"`
}

type jsonPacket struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Mark      uint32 `json:"mark"`
	ConnMark  uint32 `json:"connmark"`
	Interface string `json:"interface,omitempty"`
	Local     bool   `json:"local"`
}

type jsonStep struct {
	Hook trace.Hook `json:"hook"`
	*jsonPlace
	Comment     string  `json:"comment,omitempty"`
	Depth       int     `json:"depth"`
	Matched     bool    `json:"matched"`
	Missed      string  `json:"missed,omitempty"`
	Unknown     string  `json:"unknown,omitempty"`
	Assumed     string  `json:"assumed,omitempty"`
	Route       string  `json:"route,omitempty"`
	Effect      string  `json:"effect,omitempty"`
	Probability float64 `json:"probability,omitempty"`
}

func jsonOf(r trace.Result, advice string) jsonTrace {
	return jsonTrace{Packet: r.Packet.String(), Ways: jsonWays(r.Ways), Advice: advice}
}

func jsonWays(ways []trace.Way) []jsonWay {
	var all []jsonWay
	for _, w := range ways {
		j := jsonWay{
			Probability: w.Probability, Verdict: w.Verdict, Reason: w.Reason, Port: w.Port, Steps: []jsonStep{}, Outcomes: jsonWays(w.Outcomes),
			Packet: jsonPacket{trace.Endpoint(w.Packet.From), trace.Endpoint(w.Packet.To), w.Packet.Mark, w.Packet.CTMark, w.Packet.Interface, w.Packet.Local},
		}
		if w.At != nil {
			j.At = placeOf(w.At.Chain, w.At.Rule, w.At.Text)
		}
		for _, s := range w.Steps {
			j.Steps = append(j.Steps, jsonStepOf(s))
		}
		all = append(all, j)
	}
	return all
}

func jsonStepOf(s trace.Step) jsonStep {
	j := jsonStep{
		Hook: s.Hook, Depth: s.Depth, Missed: s.Missed, Unknown: s.Unknown, Assumed: s.Assumed, Effect: s.Effect, Probability: s.Odds,
		Matched: s.Missed == "" && s.Assumed == "",
	}
	if s.Chain == nil {
		j.Route = s.Text
		return j
	}
	j.jsonPlace = placeOf(s.Chain, s.Rule, s.Text)
	if s.Rule != nil {
		j.Text, j.Comment = s.Rule.Text, s.Rule.Comment
	}
	return j
}

func placeOf(c *trace.Chain, r *trace.Rule, text string) *jsonPlace {
	if c == nil {
		return nil
	}
	p := &jsonPlace{Family: c.Table.Family, Table: c.Table.Name, Origin: c.Table.Origin, Chain: c.Name, Policy: r == nil, Text: text}
	if r != nil {
		p.Rule = r.Number
	}
	return p
}
