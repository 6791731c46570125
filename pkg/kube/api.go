package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
)

// API looks objects up at an API server. It is safe for concurrent use.
type API struct {
	client     *http.Client
	header     http.Header // of every request
	server     string      // scheme, host and path prefix, without credentials
	kubeconfig string      // path, or another name in errors for where the credential comes from
	sleep      func(context.Context, time.Duration)
}

// NewAPI reads kubeconfig (a path) and prepares a client; it makes no request. Paths inside the file are relative to the file. It
// fails if the file, or one that it refers to, is missing or invalid; the error never quotes a credential.
func NewAPI(kubeconfig string) (*API, error) { return newAPI(kubeconfig, sleep) }

func newAPI(kubeconfig string, sleep func(context.Context, time.Duration)) (*API, error) {
	a, err := readKubeconfig(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	api := NewAPIOver(a.transport(), a.server, kubeconfig)
	if a.token != "" {
		api.header.Set("Authorization", "Bearer "+a.token)
	}
	api.sleep = sleep
	return api, nil
}

// NewAPIOver asks server over a transport that adds the credential; errors name origin as its source.
func NewAPIOver(transport http.RoundTripper, server *url.URL, origin string) *API {
	base := url.URL{Scheme: server.Scheme, Host: server.Host, Path: server.Path}
	return &API{
		client: &http.Client{
			Transport: transport,
			// A redirect to another host would send the credential there.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		header:     http.Header{"Accept": {"application/json"}, "User-Agent": {"detour"}},
		server:     strings.TrimRight(base.String(), "/"),
		kubeconfig: origin,
		sleep:      sleep,
	}
}

// errStopped is the end of a request for a configuration that nobody needs any more.
var errStopped = errors.New("stopped because the configuration is not needed")

// Lookup gets pod and configuration concurrently over one connection, and then another configuration if the pod names one. It
// retries connection errors, 429 and 5xx until ctx's deadline. Any other failure of the pod's request ends both at once. A pod that needs
// no configuration neither waits for it nor fails with it. An absent configuration is not an error. The error is a *StatusError for an API
// answer, also ErrNotFound if the pod does not exist, and context.Cause(ctx) when time ran out.
func (a *API) Lookup(ctx context.Context, r Request) (Objects, error) {
	both, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	var out Objects
	var configErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		out.Config, out.ConfigAbsent, configErr = a.Config(both, r.Config)
	}()
	pod, podErr := a.pod(both, r.Namespace, r.Name)
	own := r.ConfigOf(pod)
	if podErr != nil || own.Name != r.Config.Name {
		stop(errStopped)
	}
	<-done

	switch {
	case podErr != nil:
		return Objects{}, podErr
	case own.Name != r.Config.Name:
		out.Config, out.ConfigAbsent, configErr = a.Config(ctx, own)
	}
	if configErr != nil {
		return Objects{}, configErr
	}
	out.Pod = pod
	return out, nil
}

// probePod is a pod that does not exist. The answer that it doesn't shows that the API server answers and permits the request.
const probePod = "detour-status"

// Ready makes the requests of a Lookup, for a pod that does not exist. It fails as the Lookup would, even if only one request
// fails.
func (a *API) Ready(ctx context.Context, c mesh.ConfigRef) error {
	if _, err := a.pod(ctx, cmp.Or(c.Namespace, defaultNamespace), probePod); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	_, _, err := a.Config(ctx, c)
	return err
}

func (a *API) pod(ctx context.Context, namespace, name string) ([]byte, error) {
	return a.get(ctx, target{version: "v1", resource: "pods", namespace: namespace, name: name})
}

// Config tries one version after the other until the server serves one. absent says why there is no configuration. A mesh without a
// configuration object has neither, and costs no request. It retries and fails as Lookup does.
func (a *API) Config(ctx context.Context, c mesh.ConfigRef) (body []byte, absent string, err error) {
	if c.IsZero() {
		return nil, "", nil
	}
	for _, version := range c.Versions {
		body, err := a.get(ctx, target{group: c.Group, version: version, resource: c.Resource, namespace: c.Namespace, name: c.Name})
		status, isStatus := errors.AsType[*StatusError](err)
		switch {
		case err == nil:
			return body, "", nil
		case !isStatus || status.Code != http.StatusNotFound:
			return nil, "", err
		case status.namesObject:
			return nil, c.String() + " does not exist", nil
		}
	}
	return nil, fmt.Sprintf("the API server serves no %s in %s", resource(c.Group, c.Resource), strings.Join(c.Versions, " or ")), nil
}

// target is one object in the API.
type target struct {
	group, version, resource, namespace, name string
}

// path returns the object's URL path. It refuses names that would make the path mean another object or a list.
func (t target) path() (string, error) {
	for _, s := range []string{t.namespace, t.name} {
		if s == "" || s == "." || s == ".." {
			return "", fmt.Errorf("get %s: %q is not a name", t, s)
		}
	}
	root := "/apis/" + t.group + "/" + t.version
	if t.group == "" {
		root = "/api/" + t.version
	}
	return root + "/namespaces/" + url.PathEscape(t.namespace) + "/" + t.resource + "/" + url.PathEscape(t.name), nil
}

func (t target) groupResource() string {
	return resource(t.group, t.resource)
}

// String returns the object as errors name it: "pods shop/web".
func (t target) String() string {
	return fmt.Sprintf("%s %s/%s", t.groupResource(), t.namespace, t.name)
}
