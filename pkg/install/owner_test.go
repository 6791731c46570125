package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

const ownerArgs = "DETOUR_INSTALL_OWNER" // folder, how, period, times

// owner is somebody else who knows nothing of detour and writes the network's configuration again and again. Each time the
// configuration has another MTU, so that a change that got lost shows.
type owner struct {
	how    string        // rename, truncate or open: an open file is written to only after a while
	period time.Duration // 0: as soon as the entry is there
	times  int
}

func (o owner) String() string {
	if o.period == 0 {
		return o.how + " at once"
	}
	return o.how + " every " + o.period.String()
}

// ownerWrites is how the owner changes a file.
var ownerWrites = map[string]func(path, text string) error{
	"rename": func(path, text string) error {
		if err := os.WriteFile(path+".owner", []byte(text), 0o644); err != nil {
			return err
		}
		return os.Rename(path+".owner", path)
	},
	"truncate": func(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) },
	"open": func(path, text string) error {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer file.Close()
		time.Sleep(5 * time.Millisecond)
		if err := file.Truncate(0); err != nil {
			return err
		}
		_, err = file.WriteString(text)
		return err
	},
}

var mtuOf = regexp.MustCompile(`"mtu": (\d+)`)

func withMTU(n int) string {
	return strings.Replace(bridge, `"bridge"`, fmt.Sprintf(`"bridge", "mtu": %d`, n), 1)
}

// TestOwner is the process that the tests below start. It prints how many of its changes got lost.
func TestOwner(t *testing.T) {
	args := strings.Fields(os.Getenv(ownerArgs))
	if len(args) == 0 {
		t.Skip("only for the tests with an owner")
	}
	path := filepath.Join(args[0], "10-x.conflist")
	period, err := time.ParseDuration(args[2])
	if err != nil {
		t.Fatal(err)
	}
	times, err := strconv.Atoi(args[3])
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(args[0]); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for n := 1; n <= times; n++ {
		awaitTurn(path, period, watcher)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if found := mtuOf.FindSubmatch(text); n > 1 && (found == nil || string(found[1]) != strconv.Itoa(n-1)) {
			lost++
		}
		if err := ownerWrites[args[1]](path, withMTU(n)); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("lost %d\n", lost)
}

// awaitTurn returns when the owner writes next.
func awaitTurn(path string, period time.Duration, watcher *fsnotify.Watcher) {
	if period > 0 {
		time.Sleep(period)
		return
	}
	for {
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte("detour")) {
			return
		}
		select {
		case <-watcher.Events:
		case <-time.After(time.Second):
		}
	}
}

// contested is what became of the entry while an owner wrote.
type contested struct {
	took, present, longest time.Duration
	lost                   int // changes of the owner
	answers                int
	gap                    time.Duration // the longest between two answers
}

// watchEntry looks every millisecond, until the context ends, whether the entry is in the list.
func (c *contested) watchEntry(ctx context.Context, path string) {
	began := time.Now()
	last, absent := began, began
	for ctx.Err() == nil {
		time.Sleep(time.Millisecond)
		text, err := os.ReadFile(path)
		now := time.Now()
		if err == nil && bytes.Contains(text, []byte("detour")) {
			c.present += now.Sub(last)
			absent = now
		}
		c.longest = max(c.longest, now.Sub(absent))
		last = now
	}
	c.took = last.Sub(began)
}

// contend installs, lets the owner write, and wants that in the end the list has both the entry and the owner's last change.
func contend(tb testing.TB, o owner) contested {
	tb.Helper()
	w := newWorld(tb, map[string]string{"10-x.conflist": bridge})
	r := w.run(defaultPace)
	r.until("installed", installed)
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	var c contested
	var watching sync.WaitGroup
	watching.Go(func() { c.watchEntry(ctx, w.path("10-x.conflist")) })
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, "-test.run", "^TestOwner$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %d", ownerArgs, w.ConfDir, o.how, o.period, o.times))
	out, err := cmd.CombinedOutput()
	stop()
	watching.Wait()
	if _, scanErr := fmt.Sscanf(string(out), "lost %d", &c.lost); err != nil || scanErr != nil {
		tb.Fatalf("the owner: %v, %v: %s", err, scanErr, out)
	}
	want := fmt.Sprintf(`"mtu": %d}`, o.times)
	r.until("both have their will", func(State) bool {
		text, err := os.ReadFile(w.path("10-x.conflist"))
		return err == nil && bytes.Contains(text, []byte(want)) && bytes.Contains(text, []byte("detour"))
	})
	r.stop()
	c.answers = len(r.answers)
	for i := 1; i < c.answers; i++ {
		c.gap = max(c.gap, r.answers[i].Sub(r.answers[i-1]))
	}
	return c
}

// An owner that writes the list again and again is answered each time, and none of its changes is lost. One that reacts at once is
// answered a few times a second and no more.
func TestAnOwnerThatWritesAgainAndAgain(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"rename", "truncate", "open"} {
		for _, o := range []owner{{how, 300 * time.Millisecond, 30}, {how, 0, 20}} {
			t.Run(o.String(), func(t *testing.T) {
				t.Parallel()
				c := contend(t, o)
				t.Logf("present for %s of %s, absent for %s at most, %d answers, at most %s apart", c.present, c.took, c.longest, c.answers, c.gap)
				if c.lost > 0 {
					t.Errorf("%d changes of the owner were lost", c.lost)
				}
				if least := o.times / 2; c.answers < least { // several changes may have one answer on a busy machine
					t.Errorf("%d changes of the owner were answered %d times, want %d at least", o.times, c.answers, least)
				}
				if least := defaultPace.gap * time.Duration(o.times-2); o.period == 0 && c.took < least {
					t.Errorf("%d answers took %s, want %s at least", c.answers, c.took, least)
				}
			})
		}
	}
}

// BenchmarkOwner says for each kind of owner how much of the time the entry is there, and for how long it is not. Run it with
// -benchtime=1x.
func BenchmarkOwner(b *testing.B) {
	for _, how := range []string{"rename", "truncate", "open"} {
		for _, o := range []owner{{how, 3 * time.Second, 10}, {how, 300 * time.Millisecond, 100}, {how, 0, 50}} {
			b.Run(strings.ReplaceAll(o.String(), " ", "-"), func(b *testing.B) {
				for b.Loop() {
					c := contend(b, o)
					b.ReportMetric(100*c.present.Seconds()/c.took.Seconds(), "present-%")
					b.ReportMetric(float64(c.longest.Milliseconds()), "absent-ms")
					b.ReportMetric(float64(c.gap.Milliseconds()), "gap-ms")
					b.ReportMetric(float64(c.answers)/c.took.Seconds(), "answers/s")
					b.ReportMetric(float64(c.lost), "lost")
				}
			})
		}
	}
}
