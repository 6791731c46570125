//go:build kubeapi

package apitest

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// asked is a request that a ServiceAccount has made, as the API server's audit log has it.
type asked struct {
	Stage, Verb, RequestURI  string
	SourceIPs                []string
	ObjectRef                struct{ Namespace string }
	RequestReceivedTimestamp time.Time
}

// audit returns all requests of ServiceAccounts that came since then, in the log's order.
func (c *cluster) audit(t *testing.T, since time.Time) []asked {
	t.Helper()
	data, err := os.ReadFile(c.file("audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1] // another test's request may be half written
	var all []asked
	for line := range bytes.Lines(whole) {
		var a asked
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("audit log: %v in %s", err, line)
		}
		if a.Stage == "RequestReceived" && !a.RequestReceivedTimestamp.Before(since) {
			all = append(all, a)
		}
	}
	return all
}

// requests returns what ServiceAccounts have asked for in the namespaces, sorted.
func (c *cluster) requests(t *testing.T, namespaces ...string) []string {
	t.Helper()
	var requests []string
	for _, a := range c.audit(t, time.Time{}) {
		if slices.Contains(namespaces, a.ObjectRef.Namespace) {
			requests = append(requests, a.Verb+" "+a.RequestURI)
		}
	}
	slices.Sort(requests)
	return requests
}

// denied are the requests of a user that the API server has refused.
func (c *cluster) denied(t *testing.T, user string) (requests []string) {
	t.Helper()
	data, err := os.ReadFile(c.file("audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, `"username":"`+user+`"`) && strings.Contains(line, `"authorization.k8s.io/decision":"forbid"`) {
			requests = append(requests, line)
		}
	}
	return requests
}
