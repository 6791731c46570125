package nftables

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	key   string
	value any
}

func one(key string, value any) object { return object{{key, value}} }

// with adds a member.
func (o object) with(key string, value any) object { return append(o, member{key, value}) }

// withSome adds a list, or its only element; nothing for an empty list.
func (o object) withSome(key string, list []any) object {
	switch len(list) {
	case 0:
		return o
	case 1:
		return o.with(key, list[0])
	}
	return o.with(key, list)
}

// orNull is nil for an object without members.
func (o object) orNull() any {
	if len(o) == 0 {
		return nil
	}
	return o
}

// appendJSON panics for a type that this package doesn't put into objects.
func appendJSON(b []byte, value any) []byte {
	switch v := value.(type) {
	case nil:
		return append(b, "null"...)
	case bool:
		return strconv.AppendBool(b, v)
	case int:
		return strconv.AppendInt(b, int64(v), 10)
	case uint32:
		return strconv.AppendUint(b, uint64(v), 10)
	case uint64:
		return strconv.AppendUint(b, v, 10)
	case string:
		return appendString(b, v)
	case []any:
		b = append(b, '[')
		for i, element := range v {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendJSON(b, element)
		}
		return append(b, ']')
	case object:
		b = append(b, '{')
		for i, m := range v {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = append(appendString(b, m.key), ": "...)
			b = appendJSON(b, m.value)
		}
		return append(b, '}')
	}
	panic(fmt.Sprintf("nftables: no JSON for %T", value))
}

func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\' {
			quoted, _ := json.Marshal(s)
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
