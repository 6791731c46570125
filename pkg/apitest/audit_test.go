//go:build kubeapi

package apitest

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// requests returns what ServiceAccounts have asked for in the namespaces, sorted, as the API server's audit log has it.
func (c *cluster) requests(t *testing.T, namespaces ...string) []string {
	t.Helper()
	data, err := os.ReadFile(c.file("audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	whole := data[:bytes.LastIndexByte(data, '\n')+1] // another test's request may be half written
	var requests []string
	for line := range bytes.Lines(whole) {
		var event struct {
			Stage, Verb, RequestURI string
			ObjectRef               struct{ Namespace string }
		}
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatalf("audit log: %v in %s", err, line)
		}
		if event.Stage == "RequestReceived" && slices.Contains(namespaces, event.ObjectRef.Namespace) {
			requests = append(requests, event.Verb+" "+event.RequestURI)
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
