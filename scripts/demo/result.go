package main

import (
	"net/netip"
	"sync"
)

// result is what became of one connection.
type result struct {
	row
	Dst    netip.AddrPort
	Answer string
}

// OK reports whether the connection went the wanted way: all of the answer must agree, addresses included.
func (r result) OK() bool { return r.Answer == r.Want.answer(r.Dst) }

// Family is "v4" or "v6".
func (r result) Family() string {
	if r.Dst.Addr().Is4() {
		return "v4"
	}
	return "v6"
}

// Seen is the way that the connection went, or the answer if there is no such way.
func (r result) Seen() string {
	for _, w := range ways {
		if r.Answer == w.answer(r.Dst) {
			return w.String()
		}
	}
	return r.Answer
}

// connect makes all connections of the section at once and returns their results in order.
func (s *stage) connect(sec section) []result {
	var results []result
	for _, r := range sec.Rows {
		for _, addr := range s.hosts[r.To] {
			results = append(results, result{row: r, Dst: netip.AddrPortFrom(addr, r.Port)})
		}
	}
	var running sync.WaitGroup
	for i := range results {
		running.Go(func() { results[i].Answer = s.dial(results[i].row, results[i].Dst) })
	}
	running.Wait()
	return results
}
