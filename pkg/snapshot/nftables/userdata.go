package nftables

import (
	"encoding/binary"
	"strings"
)

// userdata is what nft keeps with an object in the kernel, by type.
type userdata [16][]byte

// parseUserdata stops at what is malformed.
func parseUserdata(b []byte) (u userdata) {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if int(b[0]) < len(u) {
			u[b[0]] = b[2 : 2+int(b[1])]
		}
		b = b[2+int(b[1]):]
	}
	return u
}

// number is in the machine's byte order; ok is false if there is none.
func (u *userdata) number(kind int) (n uint32, ok bool) {
	if len(u[kind]) != 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(u[kind]), true
}

func (u *userdata) text(kind int) string { return strings.TrimRight(string(u[kind]), "\x00") }

// The types of user data. Those of tables, chains, rules, objects and elements have the comment first; a set has more.
const (
	udataComment = 0

	udataSetKeyOrder     = 0
	udataSetDataOrder    = 1
	udataSetKeyTypeof    = 3
	udataSetDataTypeof   = 4
	udataSetDataInterval = 6
	udataSetComment      = 7
	hostOrder            = 1 // of udataSetKeyOrder and udataSetDataOrder

	udataTypeofExpression = 0
	udataTypeofData       = 1

	udataPayloadHeader = 0
	udataPayloadField  = 1
	udataPayloadBits   = 4

	udataKey      = 0 // of meta, ct, rt, socket and xfrm
	udataFibFlags = 1

	udataOptionName  = 0
	udataOptionField = 1
	udataOptionKind  = 2
)

// The kinds of expressions that a typeof names, as nft numbers them.
const (
	typeofPayload = 7
	typeofOption  = 8
	typeofMeta    = 9
	typeofSocket  = 10
	typeofOSF     = 11
	typeofCT      = 12
	typeofConcat  = 13
	typeofNumgen  = 23
	typeofHash    = 24
	typeofRT      = 25
	typeofFib     = 26
	typeofXfrm    = 27
)

// parseTypeof reads the forms of the expressions that a set was declared with; nil if it knows one of them not.
func parseTypeof(b []byte) []form {
	u := parseUserdata(b)
	kind, _ := u.number(udataTypeofExpression)
	data := parseUserdata(u[udataTypeofData])
	if kind != typeofConcat {
		if f, ok := typeofForm(kind, &data); ok {
			return []form{f}
		}
		return nil
	}
	var list []form
	for _, part := range data {
		if part == nil {
			break
		}
		inner := parseUserdata(part)
		kind, _ := inner.number(udataTypeofExpression)
		data := parseUserdata(inner[udataTypeofData])
		f, ok := typeofForm(kind, &data)
		if !ok {
			return nil
		}
		list = append(list, f)
	}
	return list
}

func typeofForm(kind uint32, u *userdata) (f form, ok bool) {
	n, _ := u.number(udataKey)
	switch kind {
	case typeofPayload:
		return typeofField(u)
	case typeofOption:
		return typeofOptionField(u)
	case typeofOSF:
		return form{typeString, 128, true}, true
	case typeofNumgen, typeofHash:
		return numberForm, true
	case typeofFib:
		f = fibKeys[n].form
		if flags, _ := u.number(udataFibFlags); flags&fibPresent != 0 {
			f.datatype = typeBoolean
		}
	default:
		f = typeofKeys[kind][n].form
	}
	return f, f.datatype != nil
}

var typeofKeys = map[uint32]map[uint32]key{
	typeofMeta: metaKeys, typeofCT: ctKeys, typeofRT: rtKeys, typeofSocket: socketKeys, typeofXfrm: xfrmKeys,
}

func typeofField(u *userdata) (f form, ok bool) {
	h, _ := u.number(udataPayloadHeader)
	number, _ := u.number(udataPayloadField)
	bits, hasBits := u.number(udataPayloadBits)
	if h == 0 || int(h) >= len(headers) { // a payload without a name
		return form{typeInteger, int(bits), false}, hasBits && bits <= 1024
	}
	if fields := headers[h].fields; number >= 1 && int(number) <= len(fields) {
		f = fields[number-1].form()
		f.bits = fields[number-1].bits
		return f, true
	}
	return f, false
}

// typeofOptions are the IPv6 options as nft numbers them.
var typeofOptions = []string{"", "hbh", "rt", "rt0", "rt2", "srh", "frag", "dst", "mh"}

func typeofOptionField(u *userdata) (f form, ok bool) {
	kind, _ := u.number(udataOptionKind)
	number, _ := u.number(udataOptionName)
	at, _ := u.number(udataOptionField)
	if int(kind) >= len(options) {
		return f, false
	}
	for _, o := range options[kind] {
		found, i := uint32(o.number) == number, int(at)
		if kind == optionIPv6 {
			found, i = int(number) < len(typeofOptions) && o.name == typeofOptions[number], int(at)-1
		}
		if found && i >= 0 && i < len(o.fields) {
			return form{o.fields[i].datatype, o.fields[i].bits, false}, true
		}
	}
	return f, false
}

// comment reads the comment of anything but a set.
func comment(b []byte) string {
	u := parseUserdata(b)
	return u.text(udataComment)
}
