package kube

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestLookupTriesAgain(t *testing.T) {
	t.Parallel()
	ok := answer(200, podJSON)
	tests := []struct {
		name  string
		fails func(s **server) http.HandlerFunc
	}{
		{"after a 500", func(**server) http.HandlerFunc { return answer(500, "") }},
		{"after a 503", func(**server) http.HandlerFunc { return answer(503, noLeader) }},
		{"after a 429", func(**server) http.HandlerFunc { return answer(429, tooMany) }},
		{"after a connection that was cut before the headers", func(s **server) http.HandlerFunc {
			return func(http.ResponseWriter, *http.Request) { (*s).cut() }
		}},
		{"after a connection that was cut in the body", func(s **server) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				io.WriteString(w, podJSON[:20])
				http.NewResponseController(w).Flush()
				(*s).cut()
			}
		}},
		{"after a handler that broke off in a body of unknown length", func(**server) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, podJSON[:20])
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}},
		{"after half an answer that looks whole", func(**server) http.HandlerFunc { return answer(200, podJSON[:20]) }},
		{"after a page", func(**server) http.HandlerFunc { return answer(200, "<html></html>") }},
		{"after no object", func(**server) http.HandlerFunc { return answer(200, "[]") }},
	}
	for _, tt := range tests {
		for _, http2 := range []bool{true, false} {
			t.Run(tt.name+protocol(http2), func(t *testing.T) {
				t.Parallel()
				var s *server
				s = newServer(t, http2, routes{podPath: first(tt.fails(&s), ok), newConfig: answer(200, configJSON)})
				api := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), noSleep)
				got, err := api.Lookup(within(t, 10*time.Second), request)
				if err != nil {
					t.Fatal(err)
				}
				if string(got.Pod) != podJSON || string(got.Config) != configJSON {
					t.Errorf("got %s, %s", got.Pod, got.Config)
				}
			})
		}
	}
}

func TestTheConfigurationIsTriedAgainToo(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, routes{podPath: answer(200, podJSON), oldConfig: first(answer(500, ""), answer(200, configJSON))})
	got, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), noSleep).Lookup(within(t, 10*time.Second), request)
	if err != nil || string(got.Config) != configJSON {
		t.Errorf("got %s, %v", got.Config, err)
	}
	if n := s.count(podPath); n != 1 {
		t.Errorf("asked for the pod %d times", n)
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	refuse := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		answer(429, tooMany)(w, r)
	}
	s := newServer(t, true, routes{podPath: first(refuse, answer(200, podJSON)), newConfig: answer(200, configJSON)})
	var waits []time.Duration
	api := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), func(_ context.Context, d time.Duration) { waits = append(waits, d) })
	if _, err := api.Lookup(within(t, 10*time.Second), request); err != nil {
		t.Fatal(err)
	}
	if len(waits) != 1 || waits[0] != 7*time.Second {
		t.Errorf("waited %v, want once 7s", waits)
	}
}

func TestRetryAfterEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	refuse := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3600")
		answer(429, tooMany)(w, r)
	}
	s := newServer(t, true, routes{podPath: refuse, newConfig: answer(200, configJSON)})
	_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 3*time.Second), request)
	wantError(t, err, "(1 attempt): 429 Too Many Requests: too many requests, please try again later")
}

func TestThePauseDoublesUpToASecond(t *testing.T) {
	t.Parallel()
	for attempt, full := range []time.Duration{50, 100, 200, 400, 800, 1000, 1000, 1000} {
		full *= time.Millisecond
		for range 100 {
			if d := pause(attempt+1, io.EOF); d < full/2 || d > full {
				t.Errorf("pause after attempt %d is %s, want between %s and %s", attempt+1, d, full/2, full)
			}
		}
	}
	if d := pause(1<<40, io.EOF); d > time.Second {
		t.Errorf("pause after very many attempts is %s", d)
	}
}

func TestAnUnreadableRetryAfterIsIgnored(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"", "-1", "soon", "99999999999999999999", "Wed, 21 Oct 2015 07:28:00 GMT"} {
		if d := retryAfter(http.Header{"Retry-After": {value}}); d != 0 {
			t.Errorf("Retry-After %q is %s", value, d)
		}
	}
}

func TestTheDeadlineEndsTheAttempts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		pod  http.HandlerFunc
		want string
	}{
		{"of a server that is ill", answer(503, noLeader), `\([1-9]\d? attempts\): 503 Service Unavailable: etcd leader changed$`},
		{"of a server that hangs", hang, `\(1 attempt\): connected, but no complete answer came$`},
		{"of a server that hangs in the body", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, podJSON[:20])
			http.NewResponseController(w).Flush()
			hang(w, r)
		}, `\(1 attempt\): connected, but no complete answer came$`},
		{"of a server that is ill and then hangs", first(answer(503, noLeader), hang),
			`\(2 attempts\): connected, but no complete answer came; before that, 503 Service Unavailable: etcd leader changed$`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, routes{podPath: tt.pod, newConfig: answer(200, configJSON)})
			_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 4*time.Second), request)
			wantError(t, err, "get pods shop/web: no answer from "+s.URL+" within ")
			if !regexp.MustCompile(` within [0-9.]+m?s ` + tt.want).MatchString(err.Error()) {
				t.Errorf("error is %q", err)
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%q is no DeadlineExceeded", err)
			}
		})
	}
}

func TestAServerThatNeverFinishesTheHandshakeEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newServer(t, true, nil)
	_, err = newTestAPI(t, kubeconfig(t, "https://"+l.Addr().String(), s.ca()), sleep).Lookup(within(t, 200*time.Millisecond), request)
	wantError(t, err, "get pods shop/web: no answer from https://127.0.0.1", "(1 attempt): no connection came up in time")
}

func TestACancelledCallerIsNotKeptWaiting(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := newServer(t, true, routes{podPath: func(w http.ResponseWriter, r *http.Request) { cancel(); hang(w, r) }})
	_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(ctx, request)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestARefusedConnectionIsTriedUntilTheServerIsUp(t *testing.T) {
	t.Parallel()
	s := unstarted(t, true, routes{podPath: answer(200, podJSON), newConfig: answer(200, configJSON)})
	ca := newServer(t, true, nil).ca() // all of httptest's servers have the same certificate
	address, listen := bound(t)
	var up sync.Once
	api := newTestAPI(t, kubeconfig(t, "https://"+address, ca), func(context.Context, time.Duration) {
		up.Do(func() {
			s.Listener.Close()
			s.Listener = listen()
			s.StartTLS()
		})
	})
	got, err := api.Lookup(within(t, 10*time.Second), request)
	if err != nil || string(got.Pod) != podJSON {
		t.Errorf("got %s, %v", got.Pod, err)
	}
}

func TestARefusedConnectionIsNamedAtTheDeadline(t *testing.T) {
	t.Parallel()
	address, _ := bound(t)
	ca := newServer(t, true, nil).ca()
	_, err := newTestAPI(t, kubeconfig(t, "https://"+address, ca), sleep).Lookup(within(t, 3*time.Second), request)
	wantError(t, err, "no answer from https://"+address, "connection refused")
}

// bound returns an address that nobody else gets and that refuses connections until listen is called.
func bound(t *testing.T) (address string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "bound socket")
	t.Cleanup(func() { file.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}
	return addr.String(), func() net.Listener {
		if err := syscall.Listen(fd, 16); err != nil {
			t.Error(err)
		}
		l, err := net.FileListener(file)
		if err != nil {
			t.Error(err)
		}
		return l
	}
}

func TestAFailureThatStaysIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	never := func(context.Context, time.Duration) { t.Error("tried again") }

	t.Run("a certificate of another authority", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, true, nil)
		_, err := newTestAPI(t, kubeconfig(t, s.URL, otherCA(t)), never).Lookup(within(t, 10*time.Second), request)
		wantError(t, err, "no trusted connection: tls: failed to verify certificate: x509: certificate signed by unknown authority")
	})
	t.Run("a certificate for another name", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, true, nil)
		url := strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
		_, err := newTestAPI(t, kubeconfig(t, url, s.ca()), never).Lookup(within(t, 10*time.Second), request)
		wantError(t, err, "no trusted connection: ", "not localhost")
	})
	t.Run("a server without TLS", func(t *testing.T) {
		t.Parallel()
		s := unstarted(t, false, nil)
		s.Start()
		ca := newServer(t, true, nil).ca()
		url := strings.Replace(s.URL, "http:", "https:", 1)
		_, err := newTestAPI(t, kubeconfig(t, url, ca), never).Lookup(within(t, 10*time.Second), request)
		wantError(t, err, "no trusted connection: http: server gave HTTP response to HTTPS client")
	})
	t.Run("an answer that is too large", func(t *testing.T) {
		t.Parallel()
		huge := func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte(" "), maxBody+1)) }
		s := newServer(t, true, routes{podPath: huge, newConfig: answer(200, configJSON)})
		_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), never).Lookup(within(t, 10*time.Second), request)
		wantError(t, err, "get pods shop/web: the answer is larger than 4 MiB")
	})
}

// otherCA returns a certificate authority that has signed nothing.
func otherCA(t *testing.T) []byte {
	certificate, _ := clientCertificate(t)
	return certificate
}

// clientCertificate returns a self-signed certificate and its key.
func clientCertificate(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func TestAnAnswerOfExactlyTheLimitIsTaken(t *testing.T) {
	t.Parallel()
	large := func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("{" + strings.Repeat(" ", maxBody-2) + "}"))
	}
	s := newServer(t, true, routes{podPath: large, newConfig: answer(200, configJSON)})
	got, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 10*time.Second), request)
	if err != nil || len(got.Pod) != maxBody {
		t.Errorf("got %d bytes, %v", len(got.Pod), err)
	}
}
