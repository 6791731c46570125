package netlink

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Attribute is a netlink attribute. One that holds attributes has them encoded as its data.
type Attribute struct {
	Kind uint16
	Data []byte
}

// Native is a number in the machine's byte order, as rtnetlink has them.
func Native(kind uint16, v uint32) Attribute {
	return Attribute{kind, binary.NativeEndian.AppendUint32(nil, v)}
}

// Number is a number in network byte order, as nf_tables has them.
func Number(kind uint16, v uint32) Attribute {
	return Attribute{kind, binary.BigEndian.AppendUint32(nil, v)}
}

// Text is a string, with a NUL at its end.
func Text(kind uint16, s string) Attribute { return Attribute{kind, append([]byte(s), 0)} }

// Nested holds attributes.
func Nested(kind uint16, inner ...Attribute) Attribute {
	return Nest(kind, AppendAttributes(nil, inner...))
}

// Nest holds attributes that are encoded already.
func Nest(kind uint16, inner []byte) Attribute { return Attribute{kind | unix.NLA_F_NESTED, inner} }

// AttributeHeader is how many bytes an attribute has ahead of its data: length and type.
const AttributeHeader = 4

// AppendAttributes encodes attributes, each padded to 4 bytes.
func AppendAttributes(b []byte, attributes ...Attribute) []byte {
	for _, a := range attributes {
		b = AppendAttributeHeader(b, a.Kind, AttributeHeader+len(a.Data))
		b = append(b, a.Data...)
		b = append(b, "\x00\x00\x00"[:-len(a.Data)&3]...)
	}
	return b
}

// AppendAttributeHeader encodes the header of an attribute of this length, which includes the header.
func AppendAttributeHeader(b []byte, kind uint16, length int) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(length))
	return binary.NativeEndian.AppendUint16(b, kind)
}

// Attributes visits the attributes of b, without the flags in their types. It stops at the first that is malformed.
func Attributes(b []byte) iter.Seq[Attribute] {
	return func(yield func(Attribute) bool) {
		for len(b) >= AttributeHeader {
			length := int(binary.NativeEndian.Uint16(b))
			if length < AttributeHeader || length > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(Attribute{kind, b[AttributeHeader:length:length]}) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// Fields are attributes by their type. The last of a type counts; types from 32 on are left out.
type Fields [32][]byte

// Parse reads encoded attributes.
func Parse(b []byte) (f Fields) {
	for a := range Attributes(b) {
		if int(a.Kind) < len(f) {
			f[a.Kind] = a.Data
		}
	}
	return f
}

// Number reads what Number wrote; 0 if there is none.
func (f *Fields) Number(kind int) uint32 {
	if len(f[kind]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(f[kind])
}

// Text reads what Text wrote; "" if there is none.
func (f *Fields) Text(kind int) string {
	if n := len(f[kind]); n > 0 {
		return string(f[kind][:n-1])
	}
	return ""
}
