package agent

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

type fields = map[string]any

// apiServer speaks as much of the API server's protocol as the agent uses: get, list, watch, create, patch, evict. It
// serves no streaming lists, as before 1.32.
type apiServer struct {
	*httptest.Server
	mu       sync.Mutex
	changed  *sync.Cond
	down     bool
	expired  int      // watches from an older version end with 410 Gone
	served   []string // versions of the MeshConfig
	version  int
	objects  map[string]fields // by path
	log      []change
	posts    []post
	requests []string
	refuse   map[string]http.HandlerFunc // by method and path
}

// change is one event of a watch.
type change struct {
	version    int
	collection string
	kind       string
	object     fields
}

// post is a write.
type post struct {
	method, path, contentType string
	body                      fields
	patch                     []fields
}

func newAPIServer(t testing.TB) *apiServer {
	s := &apiServer{objects: map[string]fields{}, refuse: map[string]http.HandlerFunc{}, served: []string{"v1alpha2", "v1alpha1"}, version: 100}
	s.changed = sync.NewCond(&s.mu)
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.setDown(true)
		s.Close()
	})
	return s
}

const (
	configPath = "/apis/config.openservicemesh.io/v1alpha2/namespaces/osm-system/meshconfigs/osm-mesh-config"
	nodePath   = "/api/v1/nodes/n1"
)

func podPath(namespace, name string) string {
	return "/api/v1/namespaces/" + namespace + "/pods/" + name
}

// collectionOf is what a watch is on: all pods of the cluster, or a namespace's objects.
func collectionOf(path string) string {
	if strings.Contains(path, "/pods/") {
		return "/api/v1/pods"
	}
	return path[:strings.LastIndex(path, "/")]
}

// put creates or replaces the object at path; nil deletes it.
func (s *apiServer) put(path string, object fields) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	c := change{version: s.version, collection: collectionOf(path), kind: "MODIFIED", object: object}
	old, there := s.objects[path]
	if object == nil {
		c.kind, c.object = "DELETED", old
		delete(s.objects, path)
	} else {
		object["metadata"].(fields)["resourceVersion"] = strconv.Itoa(s.version)
		if !there {
			c.kind = "ADDED"
		}
		s.objects[path] = object
	}
	s.log = append(s.log, c)
	s.changed.Broadcast()
}

func (s *apiServer) update(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.changed.Broadcast()
}

// setDown cuts all connections, and every new one.
func (s *apiServer) setDown(down bool) {
	s.update(func() { s.down = down })
	if down {
		s.CloseClientConnections()
	}
}

// expire ends all watches with 410 and forgets the log, as a compaction does.
func (s *apiServer) expire() {
	s.update(func() {
		s.version++
		s.expired, s.log = s.version, nil
	})
}

func (s *apiServer) count(request string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.HasPrefix(r, request) {
			n++
		}
	}
	return n
}

// written returns the writes to paths with the prefix.
func (s *apiServer) written(method, prefix string) []post {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []post
	for _, p := range s.posts {
		if p.method == method && strings.HasPrefix(p.path, prefix) {
			out = append(out, p)
		}
	}
	return out
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	down, refuse := s.down, s.refuse[r.Method+" "+r.URL.Path]
	if only := r.URL.Query().Get("fieldSelector"); only != "" && refuse == nil {
		refuse = s.refuse[r.Method+" "+r.URL.Path+" "+only]
	}
	s.mu.Unlock()
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case refuse != nil:
		refuse(w, r)
	case r.Method != http.MethodGet:
		s.write(w, r)
	case strings.HasPrefix(r.URL.Path, "/apis/") && strings.Count(r.URL.Path, "/") < 5:
		s.discover(w, r)
	case r.URL.Path == "/api/v1/pods" || strings.HasSuffix(r.URL.Path, "/meshconfigs") || strings.HasSuffix(r.URL.Path, "/configmaps"):
		s.collection(w, r)
	default:
		s.get(w, r)
	}
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(body)
}

func status(code int, reason, name string) fields {
	return fields{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
		"message": reason + " " + name, "details": fields{"name": name}}
}

func refusal(code int, reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, code, status(code, reason, "it")) }
}

func (s *apiServer) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	o, ok := s.objects[r.URL.Path]
	s.mu.Unlock()
	switch {
	case s.unserved(r.URL.Path):
		http.NotFound(w, r)
		return
	case !ok:
		reply(w, 404, status(404, "NotFound", filepath.Base(r.URL.Path)))
		return
	}
	reply(w, 200, o)
}

func (s *apiServer) unserved(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.HasPrefix(path, "/apis/") && !slices.Contains(s.served, strings.Split(path, "/")[3])
}

func (s *apiServer) discover(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	served := slices.Clone(s.served)
	s.mu.Unlock()
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) == 3 && len(served) > 0 {
		var versions []fields
		for _, v := range append([]string{"v9"}, served...) {
			versions = append(versions, fields{"groupVersion": parts[2] + "/" + v, "version": v})
		}
		reply(w, 200, fields{"kind": "APIGroup", "apiVersion": "v1", "name": parts[2], "versions": versions})
		return
	}
	if len(parts) == 4 && slices.Contains(served, parts[3]) {
		reply(w, 200, fields{"kind": "APIResourceList", "resources": []fields{{"name": "meshconfigs/status"}, {"name": "meshconfigs"}}})
		return
	}
	http.NotFound(w, r)
}

// selected reports whether the object is what the field selector wants.
func selected(r *http.Request, o fields) bool {
	field, value, _ := strings.Cut(r.URL.Query().Get("fieldSelector"), "=")
	part, name, _ := strings.Cut(field, ".")
	in, _ := o[part].(fields)
	return in[name] == value
}

func (s *apiServer) collection(w http.ResponseWriter, r *http.Request) {
	if s.unserved(r.URL.Path) {
		http.NotFound(w, r)
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		reply(w, 422, status(422, "Invalid", "sendInitialEvents"))
		return
	}
	if r.URL.Query().Get("watch") == "true" {
		s.watch(w, r)
		return
	}
	s.mu.Lock()
	items := []fields{}
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		if o := s.objects[path]; collectionOf(path) == r.URL.Path && selected(r, o) {
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
	case strings.HasPrefix(r.URL.Path, "/apis/"):
		kind, apiVersion = "MeshConfigList", strings.Join(strings.Split(r.URL.Path, "/")[2:4], "/")
	}
	reply(w, 200, fields{"kind": kind, "apiVersion": apiVersion, "metadata": fields{"resourceVersion": strconv.Itoa(version)}, "items": items})
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	at, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		reply(w, 400, status(400, "BadRequest", "resourceVersion"))
		return
	}
	defer context.AfterFunc(r.Context(), s.changed.Broadcast)()
	w.Header().Set("Content-Type", "application/json")
	w.(http.Flusher).Flush()
	send := func(kind string, o fields) {
		json.NewEncoder(w).Encode(fields{"type": kind, "object": o})
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
			send("ERROR", status(410, "Expired", "too old resource version"))
			return
		}
		for _, c := range next {
			send(c.kind, c.object)
			at = c.version
		}
	}
}

func (s *apiServer) write(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	p := post{method: r.Method, path: r.URL.Path, contentType: r.Header.Get("Content-Type")}
	if json.Unmarshal(data, &p.body) != nil {
		json.Unmarshal(data, &p.patch)
	}
	s.update(func() { s.posts = append(s.posts, p) })
	reply(w, 201, fields{"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

// kubeconfig writes one for the server.
func (s *apiServer) kubeconfig(t testing.TB) string {
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
