package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
)

// requestTime bounds a request that is not a list or a watch.
const requestTime = 10 * time.Second

// RESTConfig reads the API server's address and credential; kubeconfig is a path, "" means the pod's ServiceAccount.
func RESTConfig(kubeconfig string) (*rest.Config, error) {
	read := rest.InClusterConfig
	if kubeconfig != "" {
		read = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	config, err := read()
	if err != nil {
		return nil, fmt.Errorf("read the API server's address and credential: %w", err)
	}
	config.Dial = kube.Dialer().DialContext
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return talking{next, Silence} })
	return config, nil
}

// NewLive prepares lookups at the API server. origin names the configuration in errors.
func NewLive(config *rest.Config, origin string) (*kube.API, error) {
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("read the server's address in %s: %w", origin, err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("prepare a client from %s: %w", origin, err)
	}
	return kube.NewAPIOver(transport, server, origin), nil
}

// Client makes the agent's own requests. What the plugin asks for goes through kube.API.
type Client struct{ rest *rest.RESTClient }

// NewClient prepares a client that also decodes the object that ref names. It makes no request.
func NewClient(config *rest.Config, ref mesh.ConfigRef) (*Client, error) {
	c := rest.CopyConfig(config)
	c.UserAgent = cmp.Or(c.UserAgent, "detour-agent")
	c.QPS, c.Burst = 20, 50 // repairs and Events have limits of their own
	c.APIPath = "/"
	c.GroupVersion = &schema.GroupVersion{Version: "v1"}
	c.NegotiatedSerializer = serializer.NewCodecFactory(newScheme(ref)).WithoutConversion()
	made, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("prepare a client of the API server: %w", err)
	}
	return &Client{made}, nil
}

// requests returns a function that makes requests for the objects under path that the field selector selects.
func (c *Client) requests(path, fields string) func(metav1.ListOptions) *rest.Request {
	return func(o metav1.ListOptions) *rest.Request {
		o.FieldSelector = fields
		r := c.rest.Get().AbsPath(path).SpecificallyVersionedParams(&o, metav1.ParameterCodec, schema.GroupVersion{Version: "v1"})
		if o.TimeoutSeconds != nil {
			r = r.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
		}
		return r
	}
}

// listWatch lists and watches the objects under path that the field selector selects. heard is called with what arrives of a list or
// an event.
func (c *Client) listWatch(path, fields string, heard func()) cache.ListerWatcher {
	request := c.requests(path, fields)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return request(o).Do(listening(ctx, heard)).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return request(o).Watch(listening(ctx, heard))
		},
	}
}

// Get reads the JSON at path, which may have a query, into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	result := c.rest.Get().RequestURI(path).Do(ctx)
	err := result.Error() // says why, as Raw's does not
	if err == nil {
		var data []byte
		data, _ = result.Raw()
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// Create posts the object to path, once: if the API server asks to come back later, the caller decides when.
func (c *Client) Create(ctx context.Context, path string, object any) error {
	return c.send(ctx, "POST", path, runtime.ContentTypeJSON, object)
}

// Patch patches the object at path, once.
func (c *Client) Patch(ctx context.Context, path string, kind types.PatchType, patch any) error {
	return c.send(ctx, "PATCH", path, string(kind), patch)
}

// Delete deletes the object at path, once. What depends on it goes first; until then the object is there.
func (c *Client) Delete(ctx context.Context, path string) error {
	return c.send(ctx, "DELETE", path, runtime.ContentTypeJSON, map[string]string{"propagationPolicy": "Foreground"})
}

func (c *Client) send(ctx context.Context, verb, path, contentType string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	data, err := json.Marshal(body)
	if err == nil {
		err = c.rest.Verb(verb).AbsPath(path).SetHeader("Content-Type", contentType).MaxRetries(0).Body(data).Do(ctx).Error()
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, path, err)
	}
	return nil
}
