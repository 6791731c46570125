package main

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/detour-cni/detour/pkg/agent/socket"
	"github.com/detour-cni/detour/pkg/agentapi"
)

// token is the one that the API server accepts.
const token = "the-token"

// startServers serves the objects over TLS and HTTP/2, and at the agent's socket. A kubeconfig, a CA and a token are in the
// lab's folder.
func (l *lab) startServers(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(l.podPath(), object(l.served.Pod))
	mux.Handle(l.configPath(), object(l.served.Config))
	s := httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = true
	s.StartTLS()
	l.onClose(func() error { s.Close(); return nil })
	l.serverURL = s.URL

	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	kubeconfig := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: "%s", certificate-authority-data: "%s"}}],
users: [{name: u, user: {tokenFile: token}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, s.URL, base64.StdEncoding.EncodeToString(ca))
	return errors.Join(
		os.WriteFile(l.path("ca.crt"), ca, 0o600),
		os.WriteFile(l.path("token"), []byte(token), 0o600),
		os.WriteFile(l.path("kubeconfig"), []byte(kubeconfig), 0o600),
		l.startAgent(ctx),
	)
}

func (l *lab) podPath() string {
	return fmt.Sprintf("/api/v1/namespaces/%s/pods/%s", podNamespace, podName)
}

func (l *lab) configPath() string {
	c := l.dialect.Config
	return fmt.Sprintf("/apis/%s/%s/namespaces/%s/%s/%s", c.Group, c.Versions[0], c.Namespace, c.Resource, c.Name)
}

func object(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "wrong token", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(data)
	}
}

// startAgent serves the agent's socket as the agent does, and answers every lookup with the pod, as the agent caches it, and the
// whole configuration.
func (l *lab) startAgent(ctx context.Context) error {
	path := l.path("agent.sock")
	server := &socket.Server{Path: path, Answer: l.answer, Malformed: func() {}, Patience: time.Minute, Check: time.Second, Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { server.Run(ctx); close(ended) }()
	l.onClose(func() error { stop(); <-ended; return nil })
	for !server.Serving() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (l *lab) answer(_ context.Context, r agentapi.Request) agentapi.Answer {
	if r.Lookup == nil {
		return agentapi.Answer{}
	}
	return agentapi.Answer{Pod: l.short.Pod, Config: l.served.Config}
}
