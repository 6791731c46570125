package trace

import "slices"

// maxWays is how many ways a walk follows. What it has not followed then is one way that is Unknown.
const maxWays = 4096

// choice is a fork that a way has passed.
type choice struct {
	branch, branches int
	odds             []float64 // nil if the walk doesn't know the condition
	at               *Decision // what has the condition that the walk doesn't know
	reason           string
	says             []string // what each branch assumes of that condition
	settled          bool     // it doesn't matter which branch is taken
}

// choices leads one walk after the other through every way: each walk repeats the choices of the one before up to the last fork that
// has a branch left, takes that branch, and the first branch of every fork behind it.
type choices struct {
	passed []choice
	next   int
	rules  int // how many rules all walks have met
}

func (c *choices) choose(fork choice) (branch int, settled bool) {
	if c.next == len(c.passed) {
		c.passed = append(c.passed, fork)
	}
	c.next++
	passed := c.passed[c.next-1]
	return passed.branch, passed.settled
}

// advance turns to the next way. It returns false if there is none.
func (c *choices) advance() bool {
	c.next = 0
	for i := len(c.passed) - 1; i >= 0; i-- {
		if c.passed[i].branch+1 < c.passed[i].branches {
			c.passed = c.passed[:i+1]
			c.passed[i].branch++
			return true
		}
	}
	return false
}

// leaf is where one walk ended, and the choices that led to it.
type leaf struct {
	Way
	passed []choice
}

// join makes ways of leaves that have the first depth choices in common. Leaves behind a condition that the walk doesn't know become
// the outcomes of one way.
func join(leaves []leaf, depth int) []Way {
	for i := 0; ; i++ {
		at := depth + i
		if len(leaves[0].passed) <= at {
			return []Way{leaves[0].Way}
		}
		fork := leaves[0].passed[at]
		if fork.odds == nil {
			return []Way{undecided(leaves, at)}
		}
		if fork.branches > 1 {
			return branch(leaves, at)
		}
	}
}

// branch joins the leaves of each branch of a fork.
func branch(leaves []leaf, at int) []Way {
	var all []Way
	for len(leaves) > 0 {
		taken := leaves[0].passed[at].branch
		n := slices.IndexFunc(leaves, func(l leaf) bool { return l.passed[at].branch != taken })
		if n < 0 {
			n = len(leaves)
		}
		ways := join(leaves[:n], at+1)
		if says := leaves[0].passed[at].says; says != nil {
			for i := range ways {
				ways[i].Assumes = says[taken]
			}
		}
		all = append(all, ways...)
		leaves = leaves[n:]
	}
	return all
}

// undecided is the way up to a condition that the walk doesn't know. If it doesn't matter, it is the way behind it.
func undecided(leaves []leaf, at int) Way {
	outcomes := branch(leaves, at)
	first := outcomes[0]
	if !slices.ContainsFunc(outcomes, func(o Way) bool { return !o.same(first) }) {
		return first.settle(at, CommonSteps(outcomes))
	}
	fork := leaves[0].passed[at]
	w := Way{
		Verdict: Unknown, At: fork.at, Reason: fork.reason, Packet: first.Packet, Outcomes: outcomes, Probability: probability(leaves[0].passed[:at]),
		passed: leaves[0].passed[:at],
	}
	w.Steps = first.Steps[:CommonSteps(outcomes)]
	for i := range w.Outcomes { // the probability of an outcome, once it is known which it is
		if w.Probability > 0 {
			w.Outcomes[i].Probability /= w.Probability
		}
	}
	return w
}

// eitherWay is what a way assumes of a condition that does not matter.
const eitherWay = "either way, the packet fares alike"

// settle says of a fork, and of the step with its condition, that it does not matter.
func (w Way) settle(fork, step int) Way {
	w.Assumes = ""
	w.passed = slices.Clone(w.passed)
	w.passed[fork].settled = true
	if step < len(w.Steps) && w.Steps[step].Assumed != "" {
		w.Steps = slices.Clone(w.Steps)
		w.Steps[step].Assumed = eitherWay
	}
	return w
}

// Met are the steps without the rules that did not match: ways may differ in which of those are worth showing.
func (w Way) Met() []Step {
	return slices.DeleteFunc(slices.Clone(w.Steps), func(s Step) bool { return s.Missed != "" })
}

// CommonSteps is how many steps all ways have met in common.
func CommonSteps(ways []Way) int {
	first := ways[0].Met()
	n := len(first)
	for _, w := range ways[1:] {
		steps := w.Met()
		i := 0
		for i < n && i < len(steps) && steps[i] == first[i] {
			i++
		}
		n = i
	}
	return n
}

func probability(passed []choice) float64 {
	p := 1.0
	for _, c := range passed {
		if c.odds != nil {
			p *= c.odds[c.branch]
		}
	}
	return p
}
