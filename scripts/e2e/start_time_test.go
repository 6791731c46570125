//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// rounds is how many pods of each kind are started, one after the other.
const rounds = 10

// bare is a namespace about whose pods detour asks nobody.
const bare = "bare"

// TestHowLongPodsTakeToStart prints the medians from creation to Ready of the same two containers in three pods: not
// meshed, meshed by an init container, and meshed by detour.
func TestHowLongPodsTakeToStart(t *testing.T) {
	installDetour(t)
	newNamespace(t, bare)
	meshed := newNamespace(t, "timed", restricted)
	kinds := []struct {
		name, namespace, file string
		values                map[string]string
	}{
		{"plain", bare, "meshed.yaml", map[string]string{"PROXY": "proxy", "ANNOTATIONS": "{}"}},
		{"init", bare, "with-init.yaml", map[string]string{"INIT_IMAGE": iptablesImage, "SCRIPT": initScript(t)}},
		{"detour", meshed, "meshed.yaml", map[string]string{"PROXY": "envoy", "ANNOTATIONS": "{}"}},
	}
	watched := watchPods(t)
	times := map[string][]time.Duration{}
	for round := range rounds + 1 {
		for _, kind := range kinds {
			name := fmt.Sprintf("%s-%d", kind.name, round)
			values := map[string]string{"NAMESPACE": kind.namespace, "NAME": name, "IMAGE": workloadImage, "ADDRS": outsideAddr}
			maps.Copy(values, kind.values)
			apply(t, manifest(t, kind.file, values))
			took := watched.untilReady(t, name)
			if round > 0 { // the first is to warm up
				times[kind.name] = append(times[kind.name], took)
			}
			if kind.name != "plain" && round == 0 {
				wantLine(t, kind.namespace, name, fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", outsideAddr))
			}
		}
	}
	for _, kind := range kinds {
		all := times[kind.name]
		slices.Sort(all)
		fmt.Printf("creation to Ready, %-6s median %4d ms of %d, %d to %d\n",
			kind.name, median(all).Milliseconds(), len(all), all[0].Milliseconds(), all[len(all)-1].Milliseconds())
	}
}

func median(sorted []time.Duration) time.Duration {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// initScript is what an init container runs to program the rules that detour would.
func initScript(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pod.yaml")
	objects := manifest(t, "mesh.yaml", nil) + "---\n" + meshedPod(t, "timed", "web", nil, outsideAddr)
	if err := os.WriteFile(file, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for family, restore := range map[string]string{"4": "iptables-restore", "6": "ip6tables-restore"} {
		rules := mustOutput(t, exec.Command(filepath.Join(folder("BIN"), "detourctl"),
			"render", "--mesh", "osm", "--manifests", file, "--pod", "timed/web", "--family", family))
		fmt.Fprintf(&script, "%s --noflush <<END\n%sEND\n", restore, rules)
	}
	return toJSON(t, script.String())
}

// pods are the events of all pods, with the times when they came.
type pods struct{ events chan event }

type event struct {
	Type   string
	Object struct {
		Metadata struct{ Name string }
		Status   struct {
			Conditions []struct{ Type, Status string }
		}
	}
	at time.Time
}

func watchPods(t *testing.T) pods {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cmd := kubernetes.Kubectl(ctx, "get", "pods", "--all-namespaces", "--watch", "--output-watch-events", "-o", "json")
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := pods{make(chan event, 1000)}
	go func() {
		defer close(p.events)
		for d := json.NewDecoder(stdout); ; {
			var e event
			if err := d.Decode(&e); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil {
					fmt.Fprintf(os.Stderr, "watch pods: %v\n", err)
				}
				return
			}
			e.at = time.Now()
			p.events <- e
		}
	}()
	t.Cleanup(func() {
		stop()
		for range p.events { // until it has ended
		}
		_ = cmd.Wait() // killed, as it should be
	})
	return p
}

// untilReady returns the time from the pod's creation until it was ready.
func (p pods) untilReady(t *testing.T, name string) time.Duration {
	t.Helper()
	var created time.Time
	timeout := time.After(atMost)
	for {
		select {
		case e, ok := <-p.events:
			if !ok {
				t.Fatal("the watch has ended")
			}
			if e.Object.Metadata.Name != name {
				continue
			}
			if created.IsZero() {
				created = e.at
			}
			for _, c := range e.Object.Status.Conditions {
				if c.Type == "Ready" && c.Status == "True" {
					return e.at.Sub(created)
				}
			}
		case <-timeout:
			t.Fatalf("pod %s is not ready after %s", name, atMost)
		}
	}
}
