package install

import (
	"fmt"
	"time"
)

// pace says how long Run waits.
type pace struct {
	// settle is how long the folders must be quiet before Run looks, so that it does not see half of a change; patience is how
	// long it waits for that at most.
	settle, patience time.Duration
	// period is how often it looks anyway, retry how soon after an error or without a watch.
	period, retry time.Duration
	// gap is the least time between two restorations of a part: two installers that answer each other at once must not keep the
	// node busy. After calm without a change, Run forgets the earlier ones.
	gap, calm time.Duration
}

var defaultPace = pace{
	settle: 20 * time.Millisecond, patience: 200 * time.Millisecond,
	period: 30 * time.Second, retry: time.Second,
	gap: 200 * time.Millisecond, calm: 5 * time.Minute,
}

// ConflictError says that another program has changed a part again, too soon to restore it at once.
type ConflictError struct {
	Part Part
	File string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s %s: another program keeps changing it: find out which one", e.Part, e.File)
}

// rivals counts changes by other programs. A nil one lets everything pass.
type rivals struct {
	now   func() time.Time
	pace  pace
	parts map[Part]*rival
}

type rival struct {
	want     string // what the part was, when it was right
	answered time.Time
	times    int
}

func newRivals(p pace, now func() time.Time) *rivals {
	return &rivals{now: now, pace: p, parts: map[Part]*rival{}}
}

// right notes that a part is right.
func (v *rivals) right(part Part, want string) {
	if v == nil {
		return
	}
	if v.parts[part] == nil {
		v.parts[part] = &rival{}
	}
	v.parts[part].want = want
}

// suspect returns the record of a part that was right; nil if it should be different now, or never was right.
func (v *rivals) suspect(part Part, want string) *rival {
	if v == nil {
		return nil
	}
	f := v.parts[part]
	if f == nil || f.want != want {
		return nil
	}
	return f
}

// blocked returns a ConflictError if it is too early to restore a part.
func (v *rivals) blocked(part Part, file, want string) error {
	f := v.suspect(part, want)
	if f == nil || !v.now().Before(f.answered.Add(v.pace.gap)) {
		return nil
	}
	return &ConflictError{part, file}
}

// answered notes that a part was restored, and returns how often another program made that necessary lately.
func (v *rivals) answered(part Part, want string) int {
	f := v.suspect(part, want)
	v.right(part, want)
	if f == nil {
		return 0
	}
	now := v.now()
	if now.Sub(f.answered) > v.pace.calm {
		f.times = 0
	}
	f.answered = now
	f.times++
	return f.times
}

// next is when the first blocked part may be restored; zero if none is blocked.
func (v *rivals) next() time.Time {
	var first time.Time
	for _, f := range v.parts {
		if next := f.answered.Add(v.pace.gap); next.After(v.now()) && (first.IsZero() || next.Before(first)) {
			first = next
		}
	}
	return first
}
