//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"
)

// isWatch reports whether the answer goes on for as long as the client listens.
func isWatch(r *http.Request) bool { return r.URL.Query().Get("watch") == "true" }

// ofObjects is a fault of requests for one object, which is what a lookup asks for.
func ofObjects(broken fault) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/pods/") || strings.HasSuffix(r.URL.Path, "/"+meshConfigName) {
			broken(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// first is a fault of the first requests for each path.
func first(n int, broken fault) fault {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		seen[r.URL.Path]++
		whole := seen[r.URL.Path] > n
		mu.Unlock()
		if whole {
			next.ServeHTTP(w, r)
			return
		}
		broken(w, r, next)
	}
}

// slow answers after a while.
func slow(d time.Duration) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-time.After(d):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// status answers with a failure, as an API server words it.
func status(code int, reason, retryAfter string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":"%[2]s for the test"}`, code, reason)
	}
}

// answerOf is the real answer.
func answerOf(r *http.Request, next http.Handler) *httptest.ResponseRecorder {
	plain := r.Clone(r.Context())
	plain.Header.Set("Accept-Encoding", "identity")
	answer := httptest.NewRecorder()
	next.ServeHTTP(answer, plain)
	return answer
}

// half sends the first half of an answer; with all of its length announced, the end is a cut, otherwise it looks like the whole.
func half(announced bool) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		answer := answerOf(r, next)
		w.Header().Set("Content-Type", "application/json")
		if announced {
			w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		}
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		w.(http.Flusher).Flush()
		if announced {
			panic(http.ErrAbortHandler)
		}
	}
}

// trickle never comes to the end of its answer.
func trickle(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "application/json")
	for r.Context().Err() == nil {
		w.Write([]byte(" "))
		w.(http.Flusher).Flush()
		time.Sleep(pollTime)
	}
}

// page is what a gateway in between shows to a browser.
func page(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<html><body>Please log in.</body></html>")
}

// bloated makes of each object one of 10 MB.
func bloated(w http.ResponseWriter, r *http.Request, next http.Handler) {
	answer := answerOf(r, next)
	var o object
	if json.Unmarshal(answer.Body.Bytes(), &o.Object) == nil {
		o.SetAnnotations(map[string]string{"huge": strings.Repeat("x", 10_000_000)})
	}
	json.NewEncoder(w).Encode(o.Object)
}

// expired says of each version from which a client wants to go on that it is too old, as after a compaction.
func expired(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if isWatch(r) && r.URL.Query().Get("sendInitialEvents") != "true" {
		status(http.StatusGone, "Expired", "")(w, r, next)
		return
	}
	next.ServeHTTP(w, r)
}

// silence is a fault that holds all watches silent, those that are open too, while connections live and requests are answered.
type silence struct {
	mu     sync.Mutex
	silent bool
}

func (s *silence) set(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

func (s *silence) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if isWatch(r) {
		w = quiet{w, s, r}
	}
	next.ServeHTTP(w, r)
}

// quiet is a watch's answer that writes nothing while there is silence; what was to be written is lost with it.
type quiet struct {
	http.ResponseWriter
	silence *silence
	request *http.Request
}

func (q quiet) Unwrap() http.ResponseWriter { return q.ResponseWriter }

func (q quiet) Write(p []byte) (int, error) {
	q.silence.mu.Lock()
	silent := q.silence.silent
	q.silence.mu.Unlock()
	if silent {
		<-q.request.Context().Done()
		return 0, q.request.Context().Err()
	}
	return q.ResponseWriter.Write(p)
}
