package conformance

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// api is as much of an API server as the meshes' programs need: it knows objects by their paths, takes new ones, and
// watches in which nothing happens. Nothing else is checked.
type api struct {
	sync.Mutex
	objects map[string]object
	opaque  map[string][]byte
}

const protobuf = "application/vnd.kubernetes.protobuf"

const kubeconfig = `{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "http://%s"}}], users: [{name: u}],
  contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}`

// serveAPI serves objects, each by its path, on the loopback of a namespace, or the host's if that is nil. It returns the
// path of a kubeconfig.
func serveAPI(t *testing.T, ns *nettest.Namespace, objects map[string]object) string {
	t.Helper()
	var listener net.Listener
	within := func(fn func() error) error { return fn() }
	if ns != nil {
		within = ns.Do
	}
	if err := within(func() (err error) { listener, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: &api{objects: objects, opaque: map[string][]byte{}}}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, fmt.Appendf(nil, kubeconfig, listener.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	switch {
	case query.Get("sendInitialEvents") != "":
		refuse(w, http.StatusUnprocessableEntity, "Invalid") // clients then list first
	case query.Get("watch") != "":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case r.Method == http.MethodGet:
		a.get(w, r.URL.Path)
	default:
		a.put(w, r)
	}
}

// put takes an object and answers with it. One that comes as protobuf stays as it is: it is the only one of its collection.
func (a *api) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest")
		return
	}
	a.Lock()
	defer a.Unlock()
	if r.Header.Get("Content-Type") == protobuf {
		a.opaque[r.URL.Path] = body
		answer(w, protobuf, http.StatusCreated, body)
		return
	}
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest")
		return
	}
	name, _ := at(o, "metadata")["name"].(string)
	a.objects[path.Join(r.URL.Path, name)] = o
	answer(w, "application/json", http.StatusCreated, body)
}

func answer(w http.ResponseWriter, contentType string, code int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	w.Write(body)
}

// get answers with the object of the path, or a list of those below it; no name of an object ends in s.
func (a *api) get(w http.ResponseWriter, where string) {
	a.Lock()
	defer a.Unlock()
	if o := a.objects[where]; o != nil {
		json.NewEncoder(w).Encode(o)
		return
	}
	if body := a.opaque[path.Dir(where)]; body != nil {
		answer(w, protobuf, http.StatusOK, body)
		return
	}
	if !strings.HasSuffix(where, "s") {
		refuse(w, http.StatusNotFound, "NotFound")
		return
	}
	items := []any{}
	for one, o := range a.objects {
		if path.Base(path.Dir(one)) == path.Base(where) {
			items = append(items, o)
		}
	}
	json.NewEncoder(w).Encode(object{"metadata": object{"resourceVersion": "1"}, "items": items})
}

func refuse(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code})
}
