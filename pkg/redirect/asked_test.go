package redirect

import (
	"net/netip"
	"reflect"
	"testing"
)

func TestAskedNamesEachValueByItsOrigin(t *testing.T) {
	got := AskedOf(OSM{Outbound: Outbound{
		ExcludePorts:  []Port{{6379, "spec"}, {7070, "spec"}, {8080, "annotation"}},
		ExcludeRanges: []Range{{netip.MustParsePrefix("1.1.1.1/32"), "spec"}, {netip.MustParsePrefix("fd00::/8"), "annotation"}},
		ExcludeUsers:  []User{{1000, `init container "migrate"`}},
	}})
	var lists []Asked
	for _, a := range got {
		if a.Where != "" {
			lists = append(lists, a)
		}
	}
	want := []Asked{
		{"excluded outbound range", "spec", []string{"1.1.1.1/32"}},
		{"excluded outbound range", "annotation", []string{"fd00::/8"}},
		{"excluded outbound port", "spec", []string{"6379", "7070"}},
		{"excluded outbound port", "annotation", []string{"8080"}},
		{"user that goes direct", `init container "migrate"`, []string{"UID 1000"}},
	}
	if !reflect.DeepEqual(lists, want) {
		t.Errorf("got %q, want %q", lists, want)
	}
}

// Whatever a policy says, the list says it, too.
func TestAskedLeavesNothingOut(t *testing.T) {
	for _, zero := range []Policy{OSM{}, Istio{}} {
		before := AskedOf(zero)
		policy := reflect.New(reflect.TypeOf(zero)).Elem()
		policy.Set(reflect.ValueOf(zero))
		eachLeaf(policy, policy.Type().Name(), func(path string) {
			if after := AskedOf(policy.Interface().(Policy)); reflect.DeepEqual(after, before) {
				t.Errorf("%s is not listed", path)
			}
		})
	}
}

// eachLeaf sets one leaf after the other, calls visit and sets the leaf back.
func eachLeaf(v reflect.Value, path string, visit func(path string)) {
	before := reflect.New(v.Type()).Elem()
	before.Set(v)
	defer v.Set(before)
	switch addr := v.Addr().Interface().(type) {
	case *netip.Addr:
		*addr = netip.MustParseAddr("10.0.0.1")
		visit(path)
		return
	case *netip.Prefix:
		*addr = netip.MustParsePrefix("10.0.0.0/8")
		visit(path)
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(7)
	case reflect.String:
		v.SetString("text")
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Struct:
		for i := range v.NumField() {
			eachLeaf(v.Field(i), path+"."+v.Type().Field(i).Name, visit)
		}
		return
	default:
		panic(v.Kind())
	}
	visit(path)
}
