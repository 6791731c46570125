package main

import (
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

// fair runs both plugins once and fails unless they leave the same rules, or none after DEL.
func (l *lab) fair(c comparison) error {
	got, err := l.leaves(c.detour)
	if err != nil {
		return err
	}
	if programmed := strings.Contains(got, fmt.Sprint(proxyPort)); programmed != (c.detour.verb == "ADD") {
		return fmt.Errorf("%s leaves\n%s", c.detour, got)
	}
	if c.detour.verb == "DEL" {
		return nil
	}
	want, err := l.leaves(c.floor)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s leaves\n%sbut %s\n%s", c.detour, got, c.floor, want)
	}
	return nil
}

// listings are the commands that print all rules of a namespace.
var listings = map[string][][]string{
	nftables.Name:     {{"nft", "list", "ruleset"}},
	"iptables-nft":    {{"iptables-nft-save"}, {"ip6tables-nft-save"}},
	"iptables-legacy": {{"iptables-legacy-save"}, {"ip6tables-legacy-save"}},
}

// leaves runs a plugin and returns the rules that it leaves.
func (l *lab) leaves(p plugin) (string, error) {
	var rules strings.Builder
	err := withPods(1, func(pods []*nettest.World) error {
		ns := pods[0].Pod
		if err := l.prepare(p, ns); err != nil {
			return err
		}
		if _, err := l.timed(p, ns); err != nil {
			return err
		}
		for _, command := range listings[p.backend] {
			out, err := output(ns, command[0], command[1:]...)
			if err != nil {
				return err
			}
			for line := range strings.Lines(out) {
				if !strings.HasPrefix(line, "#") { // a comment with time and version
					rules.WriteString(line)
				}
			}
		}
		return nil
	})
	return rules.String(), err
}
