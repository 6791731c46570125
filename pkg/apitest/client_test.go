//go:build kubeapi

package apitest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

type object = unstructured.Unstructured

// client makes plain requests, as whoever its certificate or token says.
type client struct {
	server, token string
	http          *http.Client
}

func newAdmin(c *cluster) (*client, error) {
	certificate, err := tls.LoadX509KeyPair(c.file("admin.crt"), c.file("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("load the administrator's certificate: %w", err)
	}
	return newClient(c, "", certificate)
}

// as returns a client with a token.
func (c *cluster) as(token string) *client {
	as, err := newClient(c, token)
	if err != nil {
		panic(err) // newAdmin has read the same CA
	}
	return as
}

func newClient(c *cluster, token string, certificates ...tls.Certificate) (*client, error) {
	ca, err := os.ReadFile(c.file("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates}}
	return &client{server: c.server, token: token, http: &http.Client{Transport: transport, Timeout: requestTime}}, nil
}

// send makes a request with a body of JSON, if there is one, and returns the answer, whatever its code.
func (c *client) send(method, path string, body any) (int, []byte, error) {
	return c.sendAs(contentTypes[method], method, path, body)
}

// sendAs is send with a body of another type of JSON.
func (c *client) sendAs(contentType, method, path string, body any) (int, []byte, error) {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, c.server+path, content)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", contentType)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// contentTypes are what a request's body is; JSON is YAML too.
var contentTypes = map[string]string{
	http.MethodPost:  "application/json",
	http.MethodPatch: "application/apply-patch+yaml",
}

// expect makes a request that must be answered with one of the codes.
func (c *client) expect(method, path string, body any, codes ...int) ([]byte, error) {
	code, answer, err := c.send(method, path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if !slices.Contains(codes, code) {
		return nil, fmt.Errorf("%s %s: want %d, got %d %.500s", method, path, codes, code, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// waitFor waits until a GET of path is answered with one of the codes.
func (c *client) waitFor(path string, codes ...int) error {
	deadline := time.Now().Add(settleTime)
	for {
		_, err := c.expect(http.MethodGet, path, nil, codes...)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s: %w", settleTime, err)
		}
		time.Sleep(pollTime)
	}
}

// plurals are the resources of the kinds that the tests and deploy/ have.
var plurals = map[string]string{
	"ClusterRole":                      "clusterroles",
	"ClusterRoleBinding":               "clusterrolebindings",
	"ConfigMap":                        "configmaps",
	"CustomResourceDefinition":         "customresourcedefinitions",
	"DaemonSet":                        "daemonsets",
	"Deployment":                       "deployments",
	"MeshConfig":                       "meshconfigs",
	"MutatingAdmissionPolicy":          "mutatingadmissionpolicies",
	"MutatingAdmissionPolicyBinding":   "mutatingadmissionpolicybindings",
	"MutatingWebhookConfiguration":     "mutatingwebhookconfigurations",
	"Namespace":                        "namespaces",
	"Node":                             "nodes",
	"Pod":                              "pods",
	"PodDisruptionBudget":              "poddisruptionbudgets",
	"Role":                             "roles",
	"RoleBinding":                      "rolebindings",
	"Secret":                           "secrets",
	"Service":                          "services",
	"ServiceAccount":                   "serviceaccounts",
	"ValidatingAdmissionPolicy":        "validatingadmissionpolicies",
	"ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
	"ValidatingWebhookConfiguration":   "validatingwebhookconfigurations",
}

// collection returns the path under which objects of o's kind are.
func collection(o object) (string, error) {
	plural, ok := plurals[o.GetKind()]
	if !ok {
		return "", fmt.Errorf("%s is a kind that the tests don't know", o.GetKind())
	}
	root := "/apis/" + o.GetAPIVersion()
	if o.GetAPIVersion() == "v1" {
		root = "/api/v1"
	}
	if o.GetNamespace() != "" {
		root += "/namespaces/" + o.GetNamespace()
	}
	return root + "/" + plural, nil
}

// apply does what `kubectl apply --server-side` does, refusing fields that the server doesn't know, and returns the object
// as stored.
func (c *client) apply(o object) (object, error) {
	path, err := collection(o)
	if err != nil {
		return object{}, err
	}
	path += "/" + o.GetName() + "?fieldManager=apitest&force=true&fieldValidation=Strict"
	body, err := c.expect(http.MethodPatch, path, o.Object, http.StatusCreated, http.StatusOK)
	if err != nil {
		return object{}, err
	}
	var stored object
	return stored, json.Unmarshal(body, &stored.Object)
}

// token asks for a token of a ServiceAccount, as the kubelet does for a pod.
func (c *cluster) token(namespace, name string) (string, error) {
	request := map[string]any{
		"apiVersion": "authentication.k8s.io/v1",
		"kind":       "TokenRequest",
		"spec":       map[string]any{"expirationSeconds": 3600},
	}
	path := "/api/v1/namespaces/" + namespace + "/serviceaccounts/" + name + "/token"
	body, err := c.admin.expect(http.MethodPost, path, request, http.StatusCreated)
	if err != nil {
		return "", err
	}
	var answer struct{ Status struct{ Token string } }
	return answer.Status.Token, json.Unmarshal(body, &answer)
}

// readManifest reads the objects of a YAML file.
func readManifest(path string) ([]object, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseManifest(path, data)
}

// parseManifest reads the objects of a YAML text; path is what errors call it.
func parseManifest(path string, data []byte) ([]object, error) {
	var objects []object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		o, err := parseObject(document)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		objects = append(objects, o)
	}
}

func parseObject(document []byte) (object, error) {
	var o object
	err := yaml.UnmarshalStrict(document, &o.Object)
	return o, err
}
