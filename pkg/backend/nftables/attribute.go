package nftables

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// attribute is a netlink attribute; one that holds attributes has them encoded as its data.
type attribute struct {
	kind uint16
	data []byte
}

func number(kind uint16, v uint32) attribute {
	return attribute{kind, binary.BigEndian.AppendUint32(nil, v)}
}

// text is a string with the NUL that the kernel wants at its end.
func text(kind uint16, s string) attribute { return attribute{kind, append([]byte(s), 0)} }

func nested(kind uint16, inner ...attribute) attribute { return nest(kind, encode(nil, inner...)) }

// nest holds attributes that are encoded already.
func nest(kind uint16, inner []byte) attribute { return attribute{kind | unix.NLA_F_NESTED, inner} }

// value is what the kernel copies into a register or compares one with.
func value(kind uint16, data []byte) attribute {
	return nested(kind, attribute{unix.NFTA_DATA_VALUE, data})
}

const attributeHeader = 4 // length and type

func encode(b []byte, attributes ...attribute) []byte {
	for _, a := range attributes {
		b = appendHeader(b, a.kind, attributeHeader+len(a.data))
		b = append(b, a.data...)
		b = append(b, "\x00\x00\x00"[:-len(a.data)&3]...)
	}
	return b
}

func appendHeader(b []byte, kind uint16, length int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(length))
	return binary.NativeEndian.AppendUint16(b, kind)
}

// decode goes through the attributes of b, without the flags in their types, and ends where b has none.
func decode(b []byte) iter.Seq[attribute] {
	return func(yield func(attribute) bool) {
		for len(b) >= attributeHeader {
			length := int(binary.NativeEndian.Uint16(b))
			if length < attributeHeader || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(attribute{kind, b[attributeHeader:length:length]}) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// fields are attributes by their type; the last of a type counts, and types that detour has no use for are left out.
type fields [32][]byte

func parse(b []byte) (f fields) {
	for a := range decode(b) {
		if int(a.kind) < len(f) {
			f[a.kind] = a.data
		}
	}
	return f
}

// number is 0 if there is none.
func (f *fields) number(kind int) uint32 {
	if len(f[kind]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(f[kind])
}

func (f *fields) text(kind int) string {
	if n := len(f[kind]); n > 0 {
		return string(f[kind][:n-1])
	}
	return ""
}

func (f *fields) value(kind int) []byte {
	inner := parse(f[kind])
	return inner[unix.NFTA_DATA_VALUE]
}
