package verify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/redirect"
)

// drift compares what was programmed with what an ADD would program today.
func (c *checks) drift(record attachment.Record) {
	switch {
	case !c.decided:
		return
	case c.refusal != nil:
		c.refused()
		return
	case c.wants.Skip != "":
		c.finding(NotWanted, restart, "the pod was programmed, but the mesh would leave it alone today: %s", c.wants.Skip)
		return
	case c.conf.Dialect.Name != record.Mesh:
		c.finding(Drifted, restart, "the net conf says mesh %s today; the pod was programmed for %s", c.conf.Dialect.Name, record.Mesh)
		return
	case len(c.added()) == 0:
		c.unknown(Drifted, recreate,
			"what would be programmed today is not known: neither the pod's record nor its namespace has an address")
		return
	}
	changes, err := backend.Changes(record, c.wants.Rules, c.wants.Families)
	if err != nil {
		c.unknown(Drifted, "correct that, or "+recreate, "what would be programmed today is not known: %v", err)
	}
	if len(changes) == 0 { // a list may have other entries that make no difference
		return
	}
	for _, f := range missing(c.wants.Families, record.Families) {
		c.finding(Drifted, restart, "%s is redirected today; the pod was programmed without it", f)
	}
	for _, f := range missing(record.Families, c.wants.Families) {
		c.finding(Drifted, restart, "%s is not redirected today; the pod was programmed with it", f)
	}
	if record.Asked == nil {
		c.finding(Drifted, restart, "other rules would be programmed today: %s (%d differ)", changes[0], len(changes))
		return
	}
	now := redirect.AskedOf(c.wants.Policy)
	for _, a := range less(now, record.Asked) {
		c.driftedTo(a, record.Asked)
	}
	for _, a := range less(record.Asked, now) {
		if a.Where != "" {
			c.finding(Drifted, restart, "%s no longer has %s; the pod was programmed with %s",
				c.place(a.Where), list(a.Values), them(a.Values))
		}
	}
}

// driftedTo reports what is asked for today and was not.
func (c *checks) driftedTo(now redirect.Asked, then []redirect.Asked) {
	if now.Where != "" {
		c.finding(Drifted, restart, "%s has %s today; the pod was programmed without %s",
			c.place(now.Where), list(now.Values), them(now.Values))
		return
	}
	was := "something else"
	if i := slices.IndexFunc(then, func(a redirect.Asked) bool { return a.What == now.What }); i >= 0 {
		was = list(then[i].Values)
	}
	c.finding(Drifted, restart, "the %s is %s today; the pod was programmed with %s", now.What, list(now.Values), was)
}

// less returns what is in a and not in b. An entry that another place asks for in b counts as being in b.
func less(a, b []redirect.Asked) []redirect.Asked {
	in := map[[2]string]bool{}
	for _, asked := range b {
		for _, v := range asked.Values {
			in[[2]string{asked.What, v}] = true
		}
	}
	var out []redirect.Asked
	for _, asked := range a {
		asked.Values = slices.DeleteFunc(slices.Clone(asked.Values), func(v string) bool { return in[[2]string{asked.What, v}] })
		if len(asked.Values) > 0 {
			out = append(out, asked)
		}
	}
	return out
}

// place says what kind of thing the origin of an entry is.
func (c *checks) place(where string) string {
	switch {
	case strings.HasPrefix(where, "spec."):
		return c.conf.Dialect.Config.Kind + " " + where
	case strings.Contains(where, " "): // init container "NAME"
		return where
	}
	return "annotation " + where
}

// maxListed is how many values a sentence lists.
const maxListed = 20

func list(values []string) string {
	if more := len(values) - maxListed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(values[:maxListed], ", "), more)
	}
	return strings.Join(values, ", ")
}

func them(values []string) string {
	if len(values) == 1 {
		return "it"
	}
	return "them"
}
