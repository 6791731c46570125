package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewAPIFailsOnAKubeconfigThat(t *testing.T) {
	t.Parallel()
	const users = "users: [{name: u, user: {token: " + token + "}}]\ncontexts: [{name: c, context: {cluster: k, user: u}}]\ncurrent-context: c\n"
	tests := []struct {
		name, content string
		words         []string
	}{
		{"is empty", "", []string{"invalid configuration"}},
		{"is no YAML", "users: [{token: " + token + "\n\t", []string{"yaml: "}},
		{"is YAML of another kind", "apiVersion: v1\nkind: Pod\nmetadata: {name: " + token + "}\n", []string{"Pod"}},
		{"has a list where an object belongs", "apiVersion: v1\nkind: Config\nusers: {token: " + token + "}\n", []string{"users"}},
		{"names a context that isn't there", "apiVersion: v1\nkind: Config\ncurrent-context: gone\n", []string{"context was not found for specified context: gone"}},
		{"has no server", "apiVersion: v1\nkind: Config\nclusters: [{name: k, cluster: {}}]\n" + users, []string{"cluster"}},
		{"has a server that is no URL", "apiVersion: v1\nkind: Config\nclusters: [{name: k, cluster: {server: 'https://[::1'}}]\n" + users, []string{"read the server's address"}},
		{"has a broken CA", "apiVersion: v1\nkind: Config\nclusters: [{name: k, cluster: {server: 'https://h', certificate-authority-data: aGVsbG8=}}]\n" + users, []string{"unable to load root certificates"}},
		{"has a CA that is no base64", "apiVersion: v1\nkind: Config\nclusters: [{name: k, cluster: {server: 'https://h', certificate-authority-data: '%'}}]\n" + users, []string{"base64"}},
		{"names a CA file that isn't there", "apiVersion: v1\nkind: Config\nclusters: [{name: k, cluster: {server: 'https://h', certificate-authority: gone.crt}}]\n" + users, []string{"gone.crt"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, t.TempDir(), "kubeconfig", tt.content)
			_, err := NewAPI(path)
			wantError(t, err, append(tt.words, path)...)
		})
	}
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
