package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/detour-cni/detour/pkg/mesh"
)

// writeTime bounds a request that is no watch.
const writeTime = 10 * time.Second

// client makes the agent's own requests; what the plugin asks for goes through kube.API.
type client struct{ rest *rest.RESTClient }

func newClient(config *rest.Config, ref mesh.ConfigRef) (*client, error) {
	c := rest.CopyConfig(config)
	c.UserAgent = "detour-agent"
	c.QPS, c.Burst = 20, 50 // repair and events have limits of their own
	c.APIPath = "/"
	c.GroupVersion = &schema.GroupVersion{Version: "v1"}
	c.NegotiatedSerializer = serializer.NewCodecFactory(newScheme(ref)).WithoutConversion()
	made, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("prepare a client of the API server: %w", err)
	}
	return &client{made}, nil
}

// requests makes requests for what is under path as far as the field selector goes.
func (c *client) requests(path, fields string) func(metav1.ListOptions) *rest.Request {
	return func(o metav1.ListOptions) *rest.Request {
		o.FieldSelector = fields
		r := c.rest.Get().AbsPath(path).SpecificallyVersionedParams(&o, metav1.ParameterCodec, schema.GroupVersion{Version: "v1"})
		if o.TimeoutSeconds != nil {
			r = r.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
		}
		return r
	}
}

// listWatch lists and watches what is under path as far as the field selector goes.
func (c *client) listWatch(path, fields string) cache.ListerWatcher {
	request := c.requests(path, fields)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return request(o).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return request(o).Watch(ctx)
		},
	}
}

// get reads the JSON at path into out.
func (c *client) get(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	data, err := c.rest.Get().AbsPath(path).Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// The content types of what is sent.
const (
	plainJSON  = "application/json"
	jsonPatch  = "application/json-patch+json"
	mergePatch = "application/merge-patch+json"
)

// send makes a request with a body, once: who is told to come back later decides himself when that is.
func (c *client) send(ctx context.Context, verb, path, contentType string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, path, err)
	}
	if err := c.rest.Verb(verb).AbsPath(path).SetHeader("Content-Type", contentType).MaxRetries(0).Body(data).Do(ctx).Error(); err != nil {
		return fmt.Errorf("%s %s: %w", verb, path, err)
	}
	return nil
}

// gone reports whether the object of a request is not there (any more).
func gone(err error) bool { return apierrors.IsNotFound(err) }

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}
