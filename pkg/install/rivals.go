package install

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// pace is how fast Run does what.
type pace struct {
	// settle is how long the folders must be quiet before Run looks, so that it does not see half of somebody's change;
	// patience is how long it waits for that at most.
	settle, patience time.Duration
	// period is how often it looks without a reason, retry how soon after an error or without a watch.
	period, retry time.Duration
	// The nth change of the same part by somebody else is answered backoff * 2^(n-2) after the one before it, maxBackoff at
	// most; calm is how long there must be no change for n to start again.
	backoff, maxBackoff, calm time.Duration
	// fight is the delay from which on somebody counts as an opponent and not as one who happened to come along.
	fight time.Duration
}

var defaultPace = pace{
	settle: 100 * time.Millisecond, patience: 500 * time.Millisecond,
	period: 30 * time.Second, retry: time.Second,
	backoff: 100 * time.Millisecond, maxBackoff: time.Minute, calm: 5 * time.Minute,
	fight: time.Second,
}

// Conflict is somebody else who changes what is installed.
type Conflict struct {
	Part Part
	File string
	// Count is how often that was put right, Since when it was for the first time, and Next when it is again at the earliest.
	Count       int
	Since, Next time.Time
	// Fight is true if it has happened so often that the answer is delayed.
	Fight bool
}

// ConflictError says that a part is wrong and has to remain so for the time being, because somebody else keeps changing it.
type ConflictError struct{ Conflict }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s %s: somebody else has changed it %d times since %s; it is put right at %s at the earliest: find out who writes it",
		e.Part, e.File, e.Count, e.Since.UTC().Format(time.TimeOnly), e.Next.UTC().Format(time.TimeOnly))
}

// rivals keeps count of changes that are not ours. A nil one lets everything pass.
type rivals struct {
	now   func() time.Time
	pace  pace
	parts map[Part]*rival
}

type rival struct {
	want  string // what the part was, when it was right
	last  time.Time
	count Conflict
}

func newRivals(p pace, now func() time.Time) *rivals {
	return &rivals{now: now, pace: p, parts: map[Part]*rival{}}
}

// right notes that a part is as it should be.
func (v *rivals) right(part Part, want string) {
	if v == nil {
		return
	}
	if v.parts[part] == nil {
		v.parts[part] = &rival{}
	}
	v.parts[part].want = want
}

// suspect returns the record of a part that had been right; nil if it should be different now, or never was right.
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

// blocked returns a ConflictError if it is too early to put a part right.
func (v *rivals) blocked(part Part, file, want string) error {
	f := v.suspect(part, want)
	if f == nil || !v.now().Before(f.count.Next) {
		return nil
	}
	c := f.count
	c.File = file
	return &ConflictError{c}
}

// answered notes that a part was put right and says whether that was because of somebody else.
func (v *rivals) answered(part Part, file, want string) bool {
	f := v.suspect(part, want)
	v.right(part, want)
	if f == nil {
		return false
	}
	now := v.now()
	if f.count.Count == 0 || now.Sub(f.last) > v.pace.calm {
		f.count = Conflict{Part: part, Since: now}
	}
	delay := v.pace.maxBackoff
	if n := f.count.Count; n < 30 {
		delay = min(delay, v.pace.backoff<<n)
	}
	f.last = now
	f.count.File = file
	f.count.Count++
	f.count.Next = now.Add(delay)
	f.count.Fight = delay >= v.pace.fight
	return true
}

// conflicts lists who has changed something lately, by part.
func (v *rivals) conflicts() []Conflict {
	var found []Conflict
	for _, part := range slices.Sorted(maps.Keys(v.parts)) {
		if f := v.parts[part]; f.count.Count > 0 && v.now().Sub(f.last) <= v.pace.calm {
			found = append(found, f.count)
		}
	}
	return found
}

// next is when the first part that is blocked may be put right; zero if none is.
func (v *rivals) next() time.Time {
	var first time.Time
	for _, f := range v.parts {
		if f.count.Next.After(v.now()) && (first.IsZero() || f.count.Next.Before(first)) {
			first = f.count.Next
		}
	}
	return first
}
