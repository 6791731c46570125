package trace

// explainMiss says why a statement did not hold.
func (w *walk) explainMiss(s Statement) string { return "" }

// addMisses adds the rules that did not match and could have decided otherwise.
func addMisses(ns *Namespace, p Packet, ways []Way) {}
