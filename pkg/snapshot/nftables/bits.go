package nftables

import "slices"

// masked is what (left & mask) ^ xor does, written with the operators &, ^ and |. The kernel has them all as one.
func masked(left operand, mask, xor *constant) (o operand, ok bool) {
	if mask.bits == 0 || mask.bits != xor.bits {
		return nil, false
	}
	and, flip, or := slices.Clone(mask.raw), slices.Clone(mask.raw), slices.Clone(mask.raw)
	for i := range and {
		or[i] = xor.raw[i] &^ mask.raw[i]
		flip[i] = xor.raw[i] & mask.raw[i]
		and[i] |= or[i]
	}
	whole := !slices.ContainsFunc(and, func(b byte) bool { return b != 0xff })
	o = left
	for _, part := range []struct {
		op   string
		raw  []byte
		none bool
	}{{"&", and, whole}, {"^", flip, isZero(flip)}, {"|", or, isZero(or)}} {
		if !part.none {
			o = &operation{part.op, o, &constant{part.raw, mask.bits}}
		}
	}
	return o, true
}

func isZero(raw []byte) bool {
	return !slices.ContainsFunc(raw, func(b byte) bool { return b != 0 })
}
