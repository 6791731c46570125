package main

import (
	"context"
	"encoding/json"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // the ways to log in that a kubeconfig may name
	"k8s.io/client-go/rest"

	"github.com/detour-cni/detour/pkg/build"
)

// client makes the few requests that are needed. client-go's typed clientset would double the time of a start.
type client struct{ rest rest.Interface }

func newClient(access *rest.Config) (client, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return client{}, err
	}
	c := rest.CopyConfig(access)
	c.UserAgent = "kubectl-detour/" + build.Version
	c.QPS, c.Burst = 50, 300 // as kubectl
	c.APIPath = "/api"
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	made, err := rest.RESTClientFor(c)
	return client{made}, err
}

// get reads the object at a path, such as /api/v1/nodes/NAME, or a list that the options select.
func (c client) get(ctx context.Context, path string, into any, o ...metav1.ListOptions) error {
	r := c.rest.Get().AbsPath(path)
	for _, o := range o {
		r = r.SpecificallyVersionedParams(&o, metav1.ParameterCodec, corev1.SchemeGroupVersion)
	}
	result := r.Do(ctx)
	if err := result.Error(); err != nil { // in the API server's words; Raw has only the code
		return err
	}
	data, err := result.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func (c client) pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, c.get(ctx, path("v1", namespace, "pods", name), pod)
}

func (c client) create(ctx context.Context, pod *corev1.Pod) error {
	return c.rest.Post().Namespace(pod.Namespace).Resource("pods").Body(pod).Do(ctx).Error()
}

// delete deletes a pod; with a grace of 0 without waiting for its node.
func (c client) delete(ctx context.Context, pod *corev1.Pod, grace *int64) error {
	options := &metav1.DeleteOptions{GracePeriodSeconds: grace}
	return c.rest.Delete().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).Body(options).Do(ctx).Error()
}

// addContainer adds an ephemeral container to a pod that runs.
func (c client) addContainer(ctx context.Context, pod *corev1.Pod, container corev1.EphemeralContainer) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []any{container}}})
	if err != nil {
		return err
	}
	return c.rest.Patch(types.StrategicMergePatchType).Namespace(pod.Namespace).Resource("pods").Name(pod.Name).
		SubResource("ephemeralcontainers").Body(patch).Do(ctx).Error()
}

// log opens the container's output, which ends when the container does.
func (c client) log(ctx context.Context, in place) (io.ReadCloser, error) {
	return c.rest.Get().Namespace(in.namespace).Resource("pods").Name(in.pod).SubResource("log").
		Param("container", in.container).Param("follow", "true").Stream(ctx)
}

// path is that of an object, or of a collection if it has no name. groupVersion is that of kubectl api-versions.
func path(groupVersion, namespace, resource, name string) string {
	p := "/apis/" + groupVersion
	if groupVersion == "v1" {
		p = "/api/v1"
	}
	if namespace != "" {
		p += "/namespaces/" + namespace
	}
	p += "/" + resource
	if name != "" {
		p += "/" + name
	}
	return p
}
