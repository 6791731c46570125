package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
)

const configMaps = "/api/v1/namespaces/istio-system/configmaps"

// demand is an OnDemand of istio's configurations, and its API server.
type demand struct {
	*OnDemand
	t      *testing.T
	server *agenttest.Server
}

func newDemand(t *testing.T) demand {
	t.Helper()
	s := agenttest.NewServer(t)
	istio, _ := mesh.Find("istio")
	client, err := NewClient(&rest.Config{Host: s.URL}, istio.Config)
	if err != nil {
		t.Fatal(err)
	}
	address, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	live := kube.NewAPIOver(transport, address, "the test")
	o := NewOnDemand(client, live, Options{Dialect: istio, Recheck: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	return demand{o, t, s}
}

func (d demand) run() {
	agenttest.Start(d.t, func(ctx context.Context) error {
		d.Run(ctx)
		return nil
	})
	agenttest.Eventually(d.t, "the usual configuration is known", d.HasConfig)
}

func (d demand) put(name string, port int) {
	d.server.Put(configMaps+"/"+name, agenttest.Fields{
		"kind": "ConfigMap", "apiVersion": "v1", "metadata": agenttest.Fields{"namespace": "istio-system", "name": name},
		"data": agenttest.Fields{"mesh": fmt.Sprintf("proxyListenPort: %d", port)},
	})
}

func (d demand) ask(name string, patience time.Duration) (Config, error) {
	ref := d.usual.ref
	ref.Name = name
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return d.ConfigOf(ctx, ref)
}

// says reports whether the configuration has the words, and how many requests that took.
func (d demand) says(name, words string) (requests int) {
	d.t.Helper()
	before := d.server.Count("GET " + configMaps + "/")
	c, err := d.ask(name, time.Minute)
	if err != nil || !c.Known || !strings.Contains(string(c.JSON)+c.Absent, words) {
		d.t.Errorf("%s: %s %s %v, want %s", name, c.JSON, c.Absent, err, words)
	}
	return d.server.Count("GET "+configMaps+"/") - before
}

func (d demand) followed(name string) bool {
	return d.server.Count("GET "+configMaps+"?fieldSelector=metadata.name%3D"+name+"&") > 0
}

func TestAConfigurationThatWasAskedForIsFollowed(t *testing.T) {
	t.Parallel()
	d := newDemand(t)
	d.put("istio", 16001)
	d.put("istio-canary", 16002)
	if n := d.says("istio", "16001"); n != 1 {
		t.Errorf("before it runs, %d requests", n)
	}
	d.run()
	if n := d.says("istio", "16001"); n != 0 {
		t.Errorf("%d requests for the usual configuration", n)
	}
	if n := d.says("istio-canary", "16002"); n != 1 {
		t.Errorf("%d requests for a new one", n)
	}
	agenttest.Eventually(t, "it is followed", func() bool { return d.says("istio-canary", "16002") == 0 })
	d.put("istio-canary", 16012)
	agenttest.Eventually(t, "a change is seen", func() bool {
		c, err := d.ask("istio-canary", time.Minute)
		return err == nil && strings.Contains(string(c.JSON), "16012")
	})
	d.server.SetDown(true)
	d.says("istio", "16001")
	d.says("istio-canary", "16012")
	d.server.SetDown(false)
	d.server.Put(configMaps+"/istio-canary", nil)
	agenttest.Eventually(t, "that it was deleted", func() bool {
		c, err := d.ask("istio-canary", time.Minute)
		return err == nil && c.Absent == "ConfigMap istio-system/istio-canary does not exist"
	})
}

// Whoever may create a pod may name any revision.
func TestNamesThatAreMadeUpAreNotFollowed(t *testing.T) {
	t.Parallel()
	d := newDemand(t)
	d.put("istio-canary", 16002)
	d.run()
	d.says("istio-canary", "16002")
	for i := range 3 * MaxRevisions {
		name := fmt.Sprintf("istio-x%d", i)
		if n := d.says(name, "ConfigMap istio-system/"+name+" does not exist"); n != 1 {
			t.Errorf("%d requests for %s", n, name)
		}
	}
	agenttest.Eventually(t, "the one that exists is followed", func() bool { return d.says("istio-canary", "16002") == 0 })
	for i := range 3 * MaxRevisions {
		if d.followed(fmt.Sprintf("istio-x%d", i)) {
			t.Errorf("istio-x%d is followed", i)
		}
	}
}

func TestSoManyConfigurationsAreFollowedAndNoMore(t *testing.T) {
	t.Parallel()
	d := newDemand(t)
	const all = MaxRevisions + 4
	for i := range all {
		d.put(fmt.Sprintf("istio-r%d", i), 16000+i)
	}
	d.run()
	for i := range all {
		d.says(fmt.Sprintf("istio-r%d", i), fmt.Sprint(16000+i))
	}
	agenttest.Eventually(t, "the last ones are followed", func() bool {
		for i := 4; i < all; i++ {
			if !d.get(fmt.Sprintf("istio-r%d", i)).Known {
				return false
			}
		}
		return true
	})
	if n := d.says("istio-r0", "16000"); n != 1 {
		t.Errorf("%d requests for one that is not followed", n)
	}
	agenttest.Eventually(t, "it takes the place of the oldest", func() bool { return d.get("istio-r0").Known && !d.get("istio-r4").Known })
	agenttest.Eventually(t, "and nothing is kept of that", func() bool {
		d.revisions.mu.RLock()
		defer d.revisions.mu.RUnlock()
		return len(d.revisions.caches) == MaxRevisions
	})
}

// An admission request must be answered in time, whatever the API server does.
func TestAskingEndsInTime(t *testing.T) {
	t.Parallel()
	d := newDemand(t)
	release := make(chan struct{})
	d.server.Refuse["GET "+configMaps+"/istio-slow"] = func(http.ResponseWriter, *http.Request) { <-release }
	d.server.Refuse["GET "+configMaps+"/istio-forbidden"] = agenttest.Refusal(403, "Forbidden")
	t.Cleanup(func() { close(release) })
	d.run()
	for name, words := range map[string]string{"istio-slow": "no answer from", "istio-forbidden": "403 Forbidden"} {
		c, err := d.ask(name, 50*time.Millisecond)
		if c.Known || err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %+v %v", name, c, err)
		}
	}
	if _, err := d.ask("istio-slow", 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
