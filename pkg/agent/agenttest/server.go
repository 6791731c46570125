// Package agenttest is an API server as far as the agent uses one, and objects for it. It is for tests.
package agenttest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Fields are a JSON object.
type Fields = map[string]any

// Server speaks as much of the API server's protocol as the agent uses: get, list, watch, create, patch, evict. It
// serves no streaming lists, as before 1.32.
type Server struct {
	*httptest.Server
	mu       sync.Mutex
	changed  *sync.Cond
	down     bool
	expired  int      // watches from an older version end with 410 Gone
	Served   []string // versions of the MeshConfig
	version  int
	objects  map[string]Fields // by path
	log      []change
	posts    []Write
	requests []string
	Refuse   map[string]http.HandlerFunc // by method and path
}

// change is one event of a watch.
type change struct {
	version    int
	collection string
	kind       string
	object     Fields
}

// Write is a request that writes.
type Write struct {
	Method, Path, ContentType string
	Body                      Fields
	Patch                     []Fields
}

// NewServer starts a server until the test ends.
func NewServer(t testing.TB) *Server {
	s := &Server{objects: map[string]Fields{}, Refuse: map[string]http.HandlerFunc{}, Served: []string{"v1alpha2", "v1alpha1"}, version: 100}
	s.changed = sync.NewCond(&s.mu)
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.SetDown(true)
		s.Close()
	})
	return s
}

// Paths of objects.
const (
	ConfigPath = "/apis/config.openservicemesh.io/v1alpha2/namespaces/osm-system/meshconfigs/osm-mesh-config"
	NodePath   = "/api/v1/nodes/n1"
)

// PodPath is a pod's path.
func PodPath(namespace, name string) string {
	return "/api/v1/namespaces/" + namespace + "/pods/" + name
}

// CollectionOf is what a watch is on: all pods of the cluster, or a namespace's objects.
func CollectionOf(path string) string {
	if strings.Contains(path, "/pods/") {
		return "/api/v1/pods"
	}
	return path[:strings.LastIndex(path, "/")]
}

// Put creates or replaces the object at path; nil deletes it.
func (s *Server) Put(path string, object Fields) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	c := change{version: s.version, collection: CollectionOf(path), kind: "MODIFIED", object: object}
	old, there := s.objects[path]
	if object == nil {
		c.kind, c.object = "DELETED", old
		delete(s.objects, path)
	} else {
		object["metadata"].(Fields)["resourceVersion"] = strconv.Itoa(s.version)
		if !there {
			c.kind = "ADDED"
		}
		s.objects[path] = object
	}
	s.log = append(s.log, c)
	s.changed.Broadcast()
}

// Update changes the server's fields.
func (s *Server) Update(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.changed.Broadcast()
}

// SetDown cuts all connections, and every new one.
func (s *Server) SetDown(down bool) {
	s.Update(func() { s.down = down })
	if down {
		s.CloseClientConnections()
	}
}

// Expire ends all watches with 410 and forgets the log, as a compaction does.
func (s *Server) Expire() {
	s.Update(func() {
		s.version++
		s.expired, s.log = s.version, nil
	})
}

// Requests are all requests so far.
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Count counts the requests with the prefix.
func (s *Server) Count(request string) int {
	n := 0
	for _, r := range s.Requests() {
		if strings.HasPrefix(r, request) {
			n++
		}
	}
	return n
}

// Written returns the writes to paths with the prefix.
func (s *Server) Written(method, prefix string) []Write {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Write
	for _, p := range s.posts {
		if p.Method == method && strings.HasPrefix(p.Path, prefix) {
			out = append(out, p)
		}
	}
	return out
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	down, refuse := s.down, s.Refuse[r.Method+" "+r.URL.Path]
	if only := r.URL.Query().Get("fieldSelector"); only != "" && refuse == nil {
		refuse = s.Refuse[r.Method+" "+r.URL.Path+" "+only]
	}
	s.mu.Unlock()
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case refuse != nil:
		refuse(w, r)
	case r.Method != http.MethodGet:
		s.Accept(w, r)
	case strings.HasPrefix(r.URL.Path, "/apis/") && strings.Count(r.URL.Path, "/") < 5:
		s.discover(w, r)
	case r.URL.Path == "/api/v1/pods" || strings.HasSuffix(r.URL.Path, "/meshconfigs") || strings.HasSuffix(r.URL.Path, "/configmaps") ||
		strings.HasSuffix(r.URL.Path, "/secrets"):
		s.List(w, r)
	default:
		s.Get(w, r)
	}
}

// Reply writes an object.
func Reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(body)
}

// Status is a failure.
func Status(code int, reason, name string) Fields {
	return Fields{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
		"message": reason + " " + name, "details": Fields{"name": name}}
}

// Refusal answers every request with a failure.
func Refusal(code int, reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { Reply(w, code, Status(code, reason, "it")) }
}

// Get answers a request for an object.
func (s *Server) Get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	o, ok := s.objects[r.URL.Path]
	s.mu.Unlock()
	switch {
	case s.unserved(r.URL.Path):
		http.NotFound(w, r)
		return
	case !ok:
		Reply(w, 404, Status(404, "NotFound", filepath.Base(r.URL.Path)))
		return
	}
	Reply(w, 200, o)
}

func (s *Server) unserved(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.HasPrefix(path, "/apis/") && !slices.Contains(s.Served, strings.Split(path, "/")[3])
}

func (s *Server) discover(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	served := slices.Clone(s.Served)
	s.mu.Unlock()
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) == 3 && len(served) > 0 {
		var versions []Fields
		for _, v := range append([]string{"v9"}, served...) {
			versions = append(versions, Fields{"groupVersion": parts[2] + "/" + v, "version": v})
		}
		Reply(w, 200, Fields{"kind": "APIGroup", "apiVersion": "v1", "name": parts[2], "versions": versions})
		return
	}
	if len(parts) == 4 && slices.Contains(served, parts[3]) {
		Reply(w, 200, Fields{"kind": "APIResourceList", "resources": []Fields{{"name": "meshconfigs/status"}, {"name": "meshconfigs"}}})
		return
	}
	http.NotFound(w, r)
}

// selected reports whether the object is what the field selector wants.
func selected(r *http.Request, o Fields) bool {
	field, value, _ := strings.Cut(r.URL.Query().Get("fieldSelector"), "=")
	part, name, _ := strings.Cut(field, ".")
	in, _ := o[part].(Fields)
	return in[name] == value
}

// List answers a request for a list or a watch.
func (s *Server) List(w http.ResponseWriter, r *http.Request) {
	if s.unserved(r.URL.Path) {
		http.NotFound(w, r)
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		Reply(w, 422, Status(422, "Invalid", "sendInitialEvents"))
		return
	}
	if r.URL.Query().Get("watch") == "true" {
		s.watch(w, r)
		return
	}
	s.mu.Lock()
	items := []Fields{}
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		if o := s.objects[path]; CollectionOf(path) == r.URL.Path && selected(r, o) {
			o = maps.Clone(o)
			delete(o, "kind")
			delete(o, "apiVersion")
			items = append(items, o)
		}
	}
	version := s.version
	s.mu.Unlock()
	kind, apiVersion := "PodList", "v1"
	switch {
	case strings.HasSuffix(r.URL.Path, "/configmaps"):
		kind = "ConfigMapList"
	case strings.HasSuffix(r.URL.Path, "/secrets"):
		kind = "SecretList"
	case strings.HasPrefix(r.URL.Path, "/apis/"):
		kind, apiVersion = "MeshConfigList", strings.Join(strings.Split(r.URL.Path, "/")[2:4], "/")
	}
	Reply(w, 200, Fields{"kind": kind, "apiVersion": apiVersion, "metadata": Fields{"resourceVersion": strconv.Itoa(version)}, "items": items})
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	at, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		Reply(w, 400, Status(400, "BadRequest", "resourceVersion"))
		return
	}
	defer context.AfterFunc(r.Context(), s.changed.Broadcast)()
	w.Header().Set("Content-Type", "application/json")
	w.(http.Flusher).Flush()
	send := func(kind string, o Fields) {
		json.NewEncoder(w).Encode(Fields{"type": kind, "object": o})
		w.(http.Flusher).Flush()
	}
	for {
		s.mu.Lock()
		var next []change
		for next == nil && !s.down && at >= s.expired && r.Context().Err() == nil {
			for _, c := range s.log {
				if c.version > at && c.collection == r.URL.Path && selected(r, c.object) {
					next = append(next, c)
				}
			}
			if next == nil {
				s.changed.Wait()
			}
		}
		down, expired := s.down, at < s.expired
		s.mu.Unlock()
		switch {
		case down || r.Context().Err() != nil:
			return
		case expired:
			send("ERROR", Status(410, "Expired", "too old resource version"))
			return
		}
		for _, c := range next {
			send(c.kind, c.object)
			at = c.version
		}
	}
}

// Accept answers a request that writes.
func (s *Server) Accept(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	p := Write{Method: r.Method, Path: r.URL.Path, ContentType: r.Header.Get("Content-Type")}
	if json.Unmarshal(data, &p.Body) != nil {
		json.Unmarshal(data, &p.Patch)
	}
	s.Update(func() { s.posts = append(s.posts, p) })
	Reply(w, 201, Fields{"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

// Kubeconfig writes a kubeconfig for the server and returns its path.
func (s *Server) Kubeconfig(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "%s"}}]
users: [{name: agent, user: {token: secret}}]
contexts: [{name: agent, context: {cluster: here, user: agent}}]
current-context: agent
`, s.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
