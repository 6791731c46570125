package main

import (
	"net/netip"
	"sync"
)

// result is what became of one connection.
type result struct {
	row
	Proxy  proxySpec
	Client netip.Addr // from which the connection comes
	Dst    netip.AddrPort
	Answer string
}

// OK reports whether the connection went the wanted way: all of the answer must agree, addresses included.
func (r result) OK() bool { return r.Answer == r.answer(r.Want) }

// answer is the line that the client reads if its connection goes that way.
func (r result) answer(w way) string {
	switch at := r.Dst.Addr(); w.Via {
	case direct:
		return answered(w.At, r.Dst, r.Client)
	case dnsAnswers:
		return answered(w.At, r.Proxy.dns(at), r.Client)
	case inbound:
		return relayed(answered(w.At, inPod(r.Dst), loopback.like(at)), r.Proxy.Inbound, r.Dst)
	default:
		return relayed(answered(w.At, r.Dst, r.Client), r.Proxy.port(w.Via), r.Dst)
	}
}

// Family is "v4" or "v6".
func (r result) Family() string {
	if r.Dst.Addr().Is4() {
		return "v4"
	}
	return "v6"
}

// Seen is the way that the connection went, or the answer if there is no such way.
func (r result) Seen() string {
	for _, w := range ways() {
		if r.Answer == r.answer(w) {
			return r.Proxy.text(w)
		}
	}
	return r.Answer
}

// connect makes all connections of the section at once and returns their results in order.
func (s *stage) connect(sec section) []result {
	var results []result
	for _, r := range sec.Rows {
		for _, addr := range s.hosts[r.To] {
			if addr.IsValid() {
				client := s.hosts[r.From.At].like(addr)
				if addr.IsLoopback() {
					client = loopback.like(addr)
				}
				results = append(results, result{row: r, Proxy: s.scenario.Proxy, Client: client, Dst: netip.AddrPortFrom(addr, r.Service.Port)})
			}
		}
	}
	var running sync.WaitGroup
	for i := range results {
		running.Go(func() { results[i].Answer = s.dial(results[i].row, results[i].Dst) })
	}
	running.Wait()
	return results
}
