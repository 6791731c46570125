package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// cluster is an API server with objects, YAML by their paths. A list is an object, too. One that begins with "forbidden" is one.
type cluster map[string]string

func (c cluster) client(t *testing.T) client {
	t.Helper()
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	made, err := newClient(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (c cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if selector := r.URL.Query().Get("labelSelector"); selector != "" {
		path += "?" + selector
	}
	text, found := c[path]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case !found:
		status(w, http.StatusNotFound, "NotFound", path+" not found")
	case text == "forbidden":
		status(w, http.StatusForbidden, "Forbidden", path+" is forbidden")
	default:
		data, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			panic(err)
		}
		_, _ = w.Write(data)
	}
}

func status(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code,
	})
}

// wantError wants an error that says so, in one line.
func wantError(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: got error %v, want %s", what, err, want)
	}
}
