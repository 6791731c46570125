package certificate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// requestTime bounds a request that is not a list or a watch.
const requestTime = 10 * time.Second

// newClient returns a client for one version of one group, whose path begins with root.
func newClient(config *rest.Config, gv schema.GroupVersion, root string) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, admissionv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("prepare a client of the API server: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // of the API server's Status
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = root, &gv
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	made, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("prepare a client of the API server: %w", err)
	}
	return made, nil
}

// follow returns client-go's cache of one object, which wakes Run. namespace is empty if the object has none.
func (k *Keeper) follow(client *rest.RESTClient, resource, namespace, name string, example runtime.Object) cache.SharedInformer {
	source := cache.NewListWatchFromClient(client, resource, namespace, fields.OneTermEqualSelector("metadata.name", name))
	i := cache.NewSharedInformer(source, example, 0)
	wake := func() {
		select {
		case k.changed <- struct{}{}:
		default:
		}
	}
	_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { wake() }, UpdateFunc: func(any, any) { wake() }, DeleteFunc: func(any) { wake() },
	})
	if err != nil {
		panic(err) // only a stopped informer refuses a handler
	}
	err = i.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			k.o.Log.Warn("API server not listed; trying again", "event", "list-failed", "resource", resource, "error", err.Error())
		}
	})
	if err != nil {
		panic(err) // only a running informer refuses a handler
	}
	return i
}

// hooks are the webhooks of one configuration.
type hooks struct {
	resource string
	client   *rest.RESTClient
	objects  cache.SharedInformer
	bundles  func(object any) map[string][]byte // the caBundles by the webhooks' names
}

func (k *Keeper) followHooks(config *rest.Config) ([]hooks, error) {
	client, err := newClient(config, admissionv1.SchemeGroupVersion, "/apis")
	if err != nil {
		return nil, err
	}
	kind := func(resource string, example runtime.Object, bundles func(any) map[string][]byte) hooks {
		return hooks{resource, client, k.follow(client, resource, "", k.o.Configuration, example), bundles}
	}
	return []hooks{
		kind("mutatingwebhookconfigurations", &admissionv1.MutatingWebhookConfiguration{}, func(o any) map[string][]byte {
			all := map[string][]byte{}
			for _, h := range o.(*admissionv1.MutatingWebhookConfiguration).Webhooks {
				all[h.Name] = h.ClientConfig.CABundle
			}
			return all
		}),
		kind("validatingwebhookconfigurations", &admissionv1.ValidatingWebhookConfiguration{}, func(o any) map[string][]byte {
			all := map[string][]byte{}
			for _, h := range o.(*admissionv1.ValidatingWebhookConfiguration).Webhooks {
				all[h.Name] = h.ClientConfig.CABundle
			}
			return all
		}),
	}, nil
}

// lacking returns the webhooks whose caBundle lacks one of the authorities, in no order. A configuration that does not exist has none.
func (h hooks) lacking(authorities [][]byte) ([]string, error) {
	if !h.objects.HasSynced() {
		return nil, notSent("the " + h.resource)
	}
	var names []string
	for _, object := range h.objects.GetStore().List() {
		for name, bundle := range h.bundles(object) {
			for _, a := range authorities {
				if !bytes.Contains(bundle, a) {
					names = append(names, name)
					break
				}
			}
		}
	}
	return names, nil
}

// patch sets the caBundle of these webhooks of the configuration and changes nothing else.
func (h hooks) patch(ctx context.Context, configuration string, names []string, bundle []byte) error {
	var webhooks []any
	for _, name := range names {
		webhooks = append(webhooks, map[string]any{"name": name, "clientConfig": map[string]any{"caBundle": bundle}})
	}
	body, err := json.Marshal(map[string]any{"webhooks": webhooks})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	err = h.client.Patch(types.StrategicMergePatchType).Resource(h.resource).Name(configuration).Body(body).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("write the caBundle: %w", err)
	}
	return nil
}
