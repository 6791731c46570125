package nftables

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
)

// fuzzTable has a set and a map, filled, for rules that refer to them.
func fuzzTable(family byte) (*Snapshot, *table) {
	t := &table{family: family, name: "t", sets: map[string]*set{}}
	for name, s := range map[string]*set{
		"s": {flags: unix.NFT_SET_ANONYMOUS, keySize: 32, key: []form{typeIPv4.form()}},
		"m": {flags: unix.NFT_SET_ANONYMOUS | unix.NFT_SET_MAP, keySize: 64, key: []form{typeIPv4.form(), typePort.form()}, data: []form{typeMark.form()}},
	} {
		s.name, s.filled = name, true
		s.elements = []element{{table: t, low: make([]byte, s.keySize/8), high: make([]byte, s.keySize/8), data: []byte{1, 2, 3, 4}}}
		t.sets[name] = s
	}
	return &Snapshot{devices: map[uint32]string{1: "lo"}}, t
}

// seeds are the expressions of all rules in the files of testdata.
func seeds(f *testing.F) (code [][]byte) {
	ns := nettest.StartNamespace(f, "seeds")
	for _, name := range []string{"match", "statement", "set", "node"} {
		rules, err := os.Open("testdata/" + name + ".nft")
		if err != nil {
			f.Fatal(err)
		}
		err = ns.Do(func() error {
			runtime.LockOSThread()
			_ = exec.Command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1").Run()
			load := exec.Command("nft", "-f", "-")
			load.Stdin = rules
			if err := load.Run(); err != nil {
				return err
			}
			s, err := Take(nil)
			if err != nil {
				return err
			}
			defer s.Close()
			for _, t := range s.tables {
				for _, c := range t.chains {
					for _, r := range c.rules {
						code = append(code, r.code)
					}
				}
			}
			return exec.Command("nft", "flush", "ruleset").Run()
		})
		rules.Close()
		if err != nil {
			f.Fatal(err)
		}
	}
	return code
}

// Whatever a rule's expressions are, they are written as JSON, and none is dropped without a word.
func FuzzRule(f *testing.F) {
	for _, code := range seeds(f) {
		f.Add(byte(unix.NFPROTO_INET), code)
		f.Add(byte(unix.NFPROTO_IPV4), code)
	}
	f.Fuzz(func(t *testing.T, family byte, code []byte) {
		s, in := fuzzTable(family)
		w := &writer{Snapshot: s}
		if out := appendJSON(nil, w.decode(in, code)); !json.Valid(out) {
			t.Errorf("%s", out)
		}
	})
}

// Whatever the kernel says of a set and its elements, they are written as JSON.
func FuzzSet(f *testing.F) {
	f.Add(uint32(0), uint32(0x1c7), uint32(0), uint32(8), []byte{}, []byte{}, []byte{10, 0, 0, 1, 0, 80, 0, 0}, []byte{}, []byte{})
	f.Add(uint32(4), uint32(7), uint32(0), uint32(4), []byte{}, []byte{}, []byte{10, 0, 0, 0}, []byte{}, []byte{})
	f.Add(uint32(8), uint32(41), uint32(19), uint32(16), []byte{0, 4, 1, 0, 0, 0}, []byte{}, []byte("eth0"), []byte{}, []byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, flags, kind, dataKind, size uint32, userdata, desc, low, high, data []byte) {
		var fields netlink.Fields
		be := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
		fields[unix.NFTA_SET_NAME] = []byte("s\x00")
		fields[unix.NFTA_SET_FLAGS], fields[unix.NFTA_SET_KEY_TYPE], fields[unix.NFTA_SET_DATA_TYPE] = be(flags), be(kind), be(dataKind)
		fields[unix.NFTA_SET_KEY_LEN], fields[unix.NFTA_SET_DATA_LEN] = be(size), be(uint32(len(data)))
		fields[unix.NFTA_SET_USERDATA], fields[unix.NFTA_SET_DESC] = userdata, desc
		s, in := fuzzTable(unix.NFPROTO_INET)
		set := newSet(&fields)
		value := func(b []byte) []byte {
			return netlink.AppendAttributes(nil, netlink.Attribute{Kind: unix.NFTA_DATA_VALUE, Data: b})
		}
		for i, end := range [][]byte{nil, nil, value(high)} {
			element := netlink.Fields{
				unix.NFTA_SET_ELEM_KEY: value(low), unix.NFTA_SET_ELEM_DATA: value(data), elemKeyEnd: end,
				elemUserdata: userdata, unix.NFTA_SET_ELEM_FLAGS: be(uint32(i)),
			}
			set.elements = append(set.elements, newElement(in, &element))
		}
		set.sorted()
		w := &writer{Snapshot: s}
		if out := appendJSON(nil, w.set(in, set)); !json.Valid(out) {
			t.Errorf("%s", out)
		}
	})
}
