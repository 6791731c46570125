package admission

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
)

// No mesh refuses a pod for its addresses now. One that did must not keep pods out that would get others.
func TestOnlyWhatIsRefusedWithAnyAddressesIsDenied(t *testing.T) {
	t.Parallel()
	decide := func(refused ...int) func(decision.Input) (decision.Decision, error) {
		return func(in decision.Input) (d decision.Decision, err error) {
			if slices.Contains(refused, len(in.Addresses)) || slices.Contains(refused, 6) && slices.Equal(in.Addresses, []netip.Addr{anyIPv6}) {
				return d, errors.New("pod shop/web: no")
			}
			return decision.Decision{Decision: mesh.Decision{Warnings: []string{"look"}}}, nil
		}
	}
	for _, tt := range []struct {
		refused []int
		denial  string
		want    []said
	}{
		{nil, "", []said{{"look", []string{networks[0].what, networks[1].what, networks[2].what}}}},
		{[]int{6}, "", []said{{"look", []string{networks[0].what, networks[2].what}}, {"it would not start: pod shop/web: no", []string{networks[1].what}}}},
		{[]int{1}, "", []said{{"it would not start: pod shop/web: no", []string{networks[0].what, networks[1].what}}, {"look", []string{networks[2].what}}}},
		{[]int{1, 2}, "pod shop/web: no", nil},
	} {
		denial, got := judge(outcomesOf(decide(tt.refused...), decision.Input{}))
		if denial != tt.denial || !slices.EqualFunc(got, tt.want, func(a, b said) bool { return a.text == b.text && slices.Equal(a.networks, b.networks) }) {
			t.Errorf("%v: %q %+v, want %+v", tt.refused, denial, got, tt.want)
		}
	}
}
