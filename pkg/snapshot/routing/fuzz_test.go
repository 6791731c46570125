package routing

import (
	"encoding/json"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever the kernel sends, it is written as JSON.
func FuzzMessage(f *testing.F) {
	f.Add(byte(unix.RTM_GETROUTE), []byte{2, 24, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 0, 8, 0, 4, 0, 1, 0, 0, 0})
	f.Add(byte(unix.RTM_GETROUTE), []byte{10, 0, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0, 20, 0, 9, 0, 16, 0, 0, 1, 1, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1})
	f.Add(byte(unix.RTM_GETRULE), []byte{2, 0, 8, 0, 254, 0, 0, 1, 2, 0, 0, 0, 8, 0, 2, 0, 10, 0, 0, 0, 8, 0, 23, 0, 80, 0, 90, 0})
	f.Add(byte(unix.RTM_GETLINK), []byte{0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0, 'l', 'o', 0, 0})
	f.Add(byte(unix.RTM_GETADDR), []byte{2, 8, 0, 254, 1, 0, 0, 0, 8, 0, 1, 0, 127, 0, 0, 1})
	f.Fuzz(func(t *testing.T, kind byte, message []byte) {
		r := &reader{links: map[uint32]entry{1: {"ifname": "lo", "addr_info": []entry{}}}}
		read, size := r.route, unix.SizeofRtMsg
		switch kind {
		case unix.RTM_GETRULE:
			read = r.rule
		case unix.RTM_GETLINK:
			read, size = r.link, unix.SizeofIfInfomsg
		case unix.RTM_GETADDR:
			read, size = address, unix.SizeofIfAddrmsg
		}
		if len(message) < size {
			return
		}
		list := []entry{}
		if e := read(message[:size], parse(message[size:])); e != nil {
			list = append(list, e)
		}
		if kind == unix.RTM_GETADDR {
			r.place(list)
		}
		if out := encode(list); !json.Valid(out) {
			t.Errorf("%s", out)
		}
	})
}
