package nftjson

import (
	"bytes"
	"encoding/json"
	"iter"
	"strconv"
)

// The functions here find their way through JSON without decoding it: of tens of thousands of rules, a walk reads a few. They
// don't check it. What they take from JSON that is not valid is decoded later, and fails then.

// skip returns the index after the value that begins at i; -1 if the data ends before it does.
func skip(data []byte, i int) int {
	depth := 0
	for ; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			depth++
			continue
		case '}', ']':
			depth--
		case '"':
			if i = closingQuote(data, i); i < 0 {
				return -1
			}
		case ' ', '\t', '\n', '\r', ',', ':':
			continue
		default:
			for i+1 < len(data) && bytes.IndexByte([]byte(" \t\n\r,:]}"), data[i+1]) < 0 {
				i++
			}
		}
		if depth <= 0 {
			return i + 1
		}
	}
	return -1
}

// closingQuote returns the index of the quote that ends the string that begins at i; -1 if there is none.
func closingQuote(data []byte, i int) int {
	for i++; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

// parts yields the values of a list, or keys and values in turn of an object, without the space around them.
func parts(data []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		data = bytes.TrimSpace(data)
		if len(data) < 2 {
			return
		}
		data = data[1 : len(data)-1]
		for {
			data = bytes.TrimLeft(data, " \t\n\r,:")
			end := skip(data, 0)
			if end < 0 || !yield(data[:end]) {
				return
			}
			data = data[end:]
		}
	}
}

// fields yields the keys and values of an object.
func fields(data []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		key, isKey := "", false
		for part := range parts(data) {
			isKey = !isKey
			if isKey {
				key = text(part)
			} else if !yield(key, part) {
				return
			}
		}
	}
}

// text decodes a string; "" if it is none.
func text(raw []byte) string {
	if len(raw) >= 2 && raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// scanRule reads a rule, and leaves its statements alone.
func scanRule(data []byte) *rule {
	var r rule
	for key, raw := range fields(data) {
		switch key {
		case "family":
			r.Family = text(raw)
		case "table":
			r.Table = text(raw)
		case "chain":
			r.Chain = text(raw)
		case "comment":
			r.Comment = text(raw)
		case "handle":
			r.Handle, _ = strconv.ParseUint(string(raw), 10, 64)
		case "expr":
			r.Expr = raw
		}
	}
	return &r
}
