package kube

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func TestNewAPIFailsOnAKubeconfigThat(t *testing.T) {
	t.Parallel()
	const contexts = "contexts: [{name: c, context: {cluster: k, user: u}}]\ncurrent-context: c\n"
	const users = "users: [{name: u, user: {token: " + token + "}}]\n" + contexts
	cluster := func(fields string) string {
		return "apiVersion: v1\nkind: Config\nclusters: [{name: k, cluster: {" + fields + "}}]\n"
	}
	user := func(fields string) string {
		return cluster("server: 'https://h'") + "users: [{name: u, user: {token: " + token + ", " + fields + "}}]\n" + contexts
	}
	tests := []struct {
		name, content string
		words         []string
	}{
		{"is empty", "", []string{"it names no current context"}},
		{"is no YAML", "users: [{token: " + token + "\n\t", []string{"yaml: "}},
		{"has an alias for a token", "users: [{token: *secret}]", []string{"yaml: unknown anchor ..."}},
		{"is YAML of another kind", "apiVersion: v1\nkind: Pod\nmetadata: {name: " + token + "}\n", []string{`it is a "Pod", not a Config`}},
		{"has an object where a list belongs", "apiVersion: v1\nkind: Config\nusers: {token: " + token + "}\n", []string{"users has the wrong type: object"}},
		{"has a number where a token belongs", `{"users": [{"user": {"token": 12345678}}]}`, []string{"users.user.token has the wrong type: number"}},
		{"names a context that isn't there", "apiVersion: v1\nkind: Config\ncurrent-context: gone\n", []string{`there is no context "gone"`}},
		{"names a cluster that isn't there", users, []string{`there is no cluster "k"`}},
		{"names a user that isn't there", cluster("server: 'https://h'") + contexts, []string{`there is no user "u"`}},
		{"has no server", cluster("") + users, []string{"cluster k: read the server's address: it is not a URL such as"}},
		{"has a server without a scheme", cluster("server: 'h:443'") + users, []string{"read the server's address: it is not a URL such as"}},
		{"has a server that is no URL", cluster("server: 'https://[::1'") + users, []string{"read the server's address: it is not a URL such as"}},
		{"has a password in a server that is no URL", cluster("server: 'https://me:"+token+"/h'") + users, []string{"read the server's address: it is not a URL such as"}},
		{"has a proxy that is no URL", cluster("server: 'https://h', proxy-url: nowhere") + users, []string{"read the proxy's address: it is not a URL such as"}},
		{"has a broken CA", cluster("server: 'https://h', certificate-authority-data: aGVsbG8=") + users, []string{"the certificate authority is no certificate in PEM"}},
		{"has a CA that is no base64", cluster("server: 'https://h', certificate-authority-data: '%'") + users, []string{"base64"}},
		{"names a CA file that isn't there", cluster("server: 'https://h', certificate-authority: gone.crt") + users, []string{"gone.crt"}},
		{"names a token file that isn't there", user("tokenFile: gone"), []string{"user u: ", "gone: no such file"}},
		{"names a token file that is a device", user("tokenFile: /dev/null"), []string{"user u: read /dev/null: it is no regular file"}},
		{"names a CA file that is a device", cluster("server: 'https://h', certificate-authority: /dev/null") + users, []string{"cluster k: read /dev/null: it is no regular file"}},
		{"has a key without a certificate", user("client-key-data: aGVsbG8="), []string{"user u: client certificate and key: "}},
		{"starts a program", user("exec: {apiVersion: client.authentication.k8s.io/v1, command: aws}"), []string{"user u: detour can't use exec; give the user a tokenFile"}},
		{"has an auth provider", user("auth-provider: {name: gcp}"), []string{"detour can't use auth-provider"}},
		{"has a password", user("username: me, password: " + token), []string{"detour can't use username"}},
		{"wants to be somebody else", user("as: me"), []string{"detour can't use as;"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, t.TempDir(), "kubeconfig", tt.content)
			_, err := NewAPI(path)
			wantError(t, err, append(tt.words, "read kubeconfig "+path)...)
		})
	}
}

// Each kubeconfig gets the pod from a server that takes nobody but a bearer of the token or of the client's certificate.
func TestAKubeconfigLetsUsInThatHas(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ cluster, user string }{
		"files by relative paths":           {"certificate-authority: ca.crt", "tokenFile: token"},
		"files by absolute paths":           {"certificate-authority: DIR/ca.crt", "tokenFile: DIR/token"},
		"everything in it":                  {"certificate-authority-data: CA", "token: " + token},
		"a token file beside an old token":  {"certificate-authority: ca.crt", "tokenFile: token, token: old"},
		"data beside files that don't hold": {"certificate-authority-data: CA, certificate-authority: gone", "tokenFile: token"},
		"a client certificate":              {"certificate-authority: ca.crt", "client-certificate: client.crt, client-key: client.key"},
		"a client certificate's data":       {"certificate-authority: ca.crt", "client-certificate-data: CRT, client-key-data: KEY"},
		"another name for the server":       {"certificate-authority: ca.crt, tls-server-name: example.com", "tokenFile: token"},
		"no authority but trust":            {"insecure-skip-tls-verify: true", "tokenFile: token"},
		"a field that nobody knows":         {"certificate-authority: ca.crt, extensions: [], colour: red", "tokenFile: token"},
	} {
		for form, render := range map[string]func([]byte) ([]byte, error){
			"YAML": func(b []byte) ([]byte, error) { return b, nil },
			"JSON": yaml.YAMLToJSON,
		} {
			t.Run(name+" ("+form+")", func(t *testing.T) {
				t.Parallel()
				s := guarded(t)
				path := kubeconfig(t, s.URL, s.ca())
				crt, key := clientCertificate(t)
				dir, encode := filepath.Dir(path), base64.StdEncoding.EncodeToString
				write(t, dir, "client.crt", string(crt))
				write(t, dir, "client.key", string(key))
				fill := strings.NewReplacer("DIR", dir, "CA", encode(s.ca()), "CRT", encode(crt), "KEY", encode(key))
				content, err := render([]byte(fill.Replace(`kind: Config
clusters: [{name: other, cluster: {server: "https://192.0.2.1"}}, {name: k, cluster: {server: "` + s.URL + `", ` + tt.cluster + `}}]
users: [{name: other, user: {exec: {command: nobody}}}, {name: u, user: {` + tt.user + `}}]
contexts: [{name: other, context: {cluster: other, user: other}}, {name: c, context: {cluster: k, user: u}}]
current-context: c`)))
				if err != nil {
					t.Fatal(err)
				}
				got, err := newTestAPI(t, write(t, dir, "kubeconfig", string(content)), noSleep).Lookup(within(t, 10*time.Second), request)
				if err != nil || string(got.Pod) != podJSON {
					t.Errorf("got %s, %v", got.Pod, err)
				}
			})
		}
	}
}

// guarded is a server that answers 401 to who has neither the token nor a client certificate.
func guarded(t *testing.T) *server {
	guard := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+token && len(r.TLS.PeerCertificates) == 0 {
				answer(401, unauthorized)(w, r)
				return
			}
			answer(200, body)(w, r)
		}
	}
	s := unstarted(t, true, routes{podPath: guard(podJSON), newConfig: guard(configJSON)})
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	return s
}

func TestAServerThatAsksForMoreThanTheKubeconfigHasRefuses(t *testing.T) {
	t.Parallel()
	s := guarded(t)
	path := kubeconfig(t, s.URL, s.ca())
	write(t, filepath.Dir(path), "token", "another")
	_, err := newTestAPI(t, path, noSleep).Lookup(within(t, 10*time.Second), request)
	wantError(t, err, "401 Unauthorized")
}

func TestNoTokenGoesOverAConnectionInTheClear(t *testing.T) {
	t.Parallel()
	s := unstarted(t, false, routes{newConfig: answer(200, configJSON), podPath: func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token was sent")
		}
		answer(200, podJSON)(w, r)
	}})
	s.Start()
	path := kubeconfig(t, s.URL, newServer(t, true, nil).ca())
	if _, err := newTestAPI(t, path, noSleep).Lookup(within(t, 10*time.Second), request); err != nil {
		t.Error(err)
	}
}

func TestTheKubeconfigsProxyIsUsed(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, nil)
	ctx, enough := context.WithCancel(within(t, time.Minute))
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Method + " " + r.Host:
		default:
		}
		w.WriteHeader(http.StatusTeapot)
		enough()
	}))
	t.Cleanup(proxy.Close)
	path := kubeconfig(t, s.URL+`", proxy-url: "`+proxy.URL, s.ca())
	_, err := newTestAPI(t, path, sleep).Lookup(ctx, request)
	if got, want := <-asked, "CONNECT "+strings.TrimPrefix(s.URL, "https://"); got != want || err == nil {
		t.Errorf("the proxy was asked for %q, want %q; error %v", got, want, err)
	}
}

// A credential that the parser stumbles over is not in its error.
func FuzzKubeconfig(f *testing.F) {
	const head = "kind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: 'https://h:1/p'}}]\n"
	for _, seed := range [][2]string{
		{head + "users: [{name: u, user: {", "}}]"}, {head + "users:\n- name: u\n  user:\n    ", "\n"}, {head + "users: [{name: u, user: {exec: {", "}}}]"},
		{`{"users":[{"user":{"token":1}}], "`, `":`}, {"*", ""}, {"!!int ", ": {}"}, {"? [1]\n: ", ""}, {"&a [*a, ", "]"}, {"", ""},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		k, err := parseKubeconfig([]byte(before + "token: " + token + after))
		if err != nil && (strings.Contains(err.Error(), token[:16]) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("error %q", err)
		}
		for i := range k.Clusters {
			k.Clusters[i].Cluster.CAFile = ""
		}
		for i := range k.Users {
			u := &k.Users[i].User
			u.TokenFile, u.CertificateFile, u.KeyFile = "", "", ""
		}
		if a, err := k.access(""); err == nil && (a.server.Host == "" || a.server.Scheme != "https" && a.token != "") {
			t.Errorf("server %s with token %q", a.server, a.token)
		}
	})
}

func TestNewAPIFailsIfAFileIsMissing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	_, err := NewAPI(path)
	wantError(t, err, "read kubeconfig "+path, "no such file")

	path = kubeconfig(t, "https://h", newServer(t, true, nil).ca())
	if err := os.Remove(filepath.Join(filepath.Dir(path), "token")); err != nil {
		t.Fatal(err)
	}
	_, err = NewAPI(path)
	wantError(t, err, "read kubeconfig "+path, "/token: no such file")
}

func TestNewAPIMakesNoRequest(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, nil)
	newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep)
	if n := s.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

func TestCredentialsInTheServersAddressAreNotShown(t *testing.T) {
	t.Parallel()
	ca := newServer(t, true, nil).ca()
	api := newTestAPI(t, kubeconfig(t, "https://user:"+token+"@127.0.0.1:1", ca), sleep)
	if strings.Contains(fmt.Sprint(api.server), token) {
		t.Errorf("server is %s", api.server)
	}
}
