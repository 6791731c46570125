package backend

import (
	"context"
	"errors"
	"testing"

	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/rules"
)

// fake is a backend, and a program, that fails in one way or another.
type fake struct {
	driver.Backend
	driver.Program
	name          string
	err, drawback error
}

func (f *fake) Prepare(context.Context, rules.Ruleset, []rules.Family) (driver.Program, error) {
	return f, f.err
}

func (f *fake) Choice() string { return f.name }

func (f *fake) Drawback() error { return f.drawback }

// Auto takes the first without a drawback; a backend that can't express the ruleset doesn't count, one that isn't usable does.
func TestWhatAutoTakes(t *testing.T) {
	slow, broken := errors.New("slow"), errors.New("broken")
	cant := driver.Unsupported("can't")
	for name, c := range map[string]struct {
		first, second  fake
		want, fallback string
		err            error
	}{
		"both are well":                         {want: "first", fallback: "second"},
		"the first is slow":                     {first: fake{drawback: slow}, want: "second"},
		"the second is slow":                    {second: fake{drawback: slow}, want: "first"},
		"both are slow":                         {first: fake{drawback: slow}, second: fake{drawback: slow}, want: "first"},
		"the first is broken":                   {first: fake{err: broken}, want: "second"},
		"the first is broken, the second slow":  {first: fake{err: broken}, second: fake{drawback: slow}, err: broken},
		"the second is broken":                  {second: fake{err: broken}, want: "first"},
		"the first is slow, the second broken":  {first: fake{drawback: slow}, second: fake{err: broken}, want: "first"},
		"the first can't":                       {first: fake{err: cant}, want: "second"},
		"the first can't, the second is slow":   {first: fake{err: cant}, second: fake{drawback: slow}, want: "second"},
		"the first can't, the second is broken": {first: fake{err: cant}, second: fake{err: broken}, err: broken},
		"none can":                              {first: fake{err: cant}, second: fake{err: cant}, err: cant},
	} {
		t.Run(name, func(t *testing.T) {
			c.first.name, c.second.name = "first", "second"
			p, err := prepareAny(t.Context(), []driver.Backend{&c.first, &c.second}, rules.Ruleset{}, nil)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Errorf("got %v, %v", p, err)
				}
				return
			}
			if err != nil || p.Choice() != c.want {
				t.Fatalf("got %v, %v, want %s", p, err, c.want)
			}
			fallback := ""
			if other := p.Fallback(t.Context()); other != nil {
				fallback = other.Choice()
			}
			if fallback != c.fallback {
				t.Errorf("falls back to %q, not %q", fallback, c.fallback)
			}
		})
	}
}
