package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/detour-cni/detour/pkg/nettest"
)

// injector is the injection webhook of a mesh of the OSM family.
type injector struct {
	program string
	brand   string // in the flags, and in the names of what it has in the cluster
	domain  string // of labels and annotations
	config  string // the API that has the MeshConfig
	mode    string // spec.traffic.interceptionMode with which it adds the init container
}

var (
	osmInjector  = injector{"osm-injector", "osm", "openservicemesh.io", "config.openservicemesh.io/v1alpha2", "iptables"}
	edgeInjector = injector{"osm-edge-injector", "osm", "openservicemesh.io", "config.openservicemesh.io/v1alpha2", "iptables"}
	fsmInjector  = injector{"fsm-injector", "fsm", "flomesh.io", "config.flomesh.io/v1alpha3", "PodLevel"}
)

func (i injector) namespace() string { return i.brand + "-system" }

// meshConfig is what the mesh's chart installs, as far as the injector needs it, with the spec of a case over it.
func (i injector) meshConfig(t *testing.T, spec string) object {
	t.Helper()
	return object{
		"apiVersion": i.config, "kind": "MeshConfig",
		"metadata": object{"namespace": i.namespace(), "name": i.brand + "-mesh-config", "resourceVersion": "1"},
		"spec": merge(parse(t, `{
			sidecar: {logLevel: error, envoyImage: sidecar, sidecarImage: sidecar, initContainerImage: init, tlsMinProtocolVersion: TLSv1_2, tlsMaxProtocolVersion: TLSv1_3,
				sidecarClass: pipy, sidecarDrivers: [{sidecarName: pipy, sidecarImage: sidecar, initContainerImage: init, proxyServerPort: 6060}]},
			traffic: {interceptionMode: `+i.mode+`}, observability: {}, featureFlags: {}, pluginChains: {},
			repoServer: {ipaddr: 127.0.0.1, codebase: ""},
			certificate: {serviceCertValidityDuration: 24h, certKeyBitSize: 2048}}`), parse(t, spec)),
	}
}

// cluster is what the injector finds at the API server.
func (i injector) cluster(meshConfig object) map[string]object {
	system := i.namespace()
	return map[string]object{
		"/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
		"/api/v1/namespaces/shop": {"metadata": object{
			"name": "shop", "labels": object{i.domain + "/monitored-by": "mesh"}, "annotations": object{i.domain + "/sidecar-injection": "enabled"},
		}},
		"/api/v1/namespaces/" + system + "/pods/injector":                                          {"metadata": object{"namespace": system, "name": "injector", "uid": "uid-0"}},
		"/apis/" + i.config + "/namespaces/" + system + "/meshconfigs/" + i.brand + "-mesh-config": meshConfig,
	}
}

// inject starts the injector, in a namespace of its own because its port is fixed, and sends it a pod.
func (i injector) inject(t *testing.T, meshConfig, pod object) object {
	t.Helper()
	ns := nettest.StartNamespace(t, i.brand)
	cmd := command(t, program(t, strings.TrimSuffix(i.program, "-injector"), i.program),
		"--kubeconfig", serveAPI(t, ns, i.cluster(meshConfig)), "--mesh-name", "mesh", "--verbosity", "warn",
		"--"+i.brand+"-namespace", i.namespace(), "--"+i.brand+"-version", "v1", "--"+i.brand+"-config-name", i.brand+"-mesh-config",
		"--webhook-config-name", "injector", "--ca-bundle-secret-name", "ca", "--"+i.brand+"-container-pull-policy", "IfNotPresent")
	cmd.Env = append(cmd.Environ(), "INJECTOR_POD_NAME=injector")
	for _, image := range []string{"SIDECAR", "INIT_CONTAINER", "HEALTHCHECK_CONTAINER"} {
		cmd.Env = append(cmd.Env, strings.ToUpper(i.brand)+"_DEFAULT_"+image+"_IMAGE=image")
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	review := awaitReview(t, ns, pod, ended, &log)
	cmd.Process.Kill()
	<-ended
	return applyReview(t, review, pod, log.String())
}

// awaitReview asks the webhook until it is there.
func awaitReview(t *testing.T, ns *nettest.Namespace, pod object, ended chan error, log *bytes.Buffer) []byte {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		answer, err := review(ns, pod)
		if err == nil {
			return answer
		}
		select {
		case err := <-ended:
			t.Fatalf("the injector ended: %v: %s", err, log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("no answer from the injector after %s: %v", patience, err)
		}
	}
}

// review sends the webhook what the API server would, and returns its answer.
func review(ns *nettest.Namespace, pod object) ([]byte, error) {
	body, err := json.Marshal(object{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": object{
		"uid": "r1", "namespace": "shop", "operation": "CREATE", "object": pod,
	}})
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = ns.Do(func() error { conn, err = new(net.Dialer).DialContext(ctx, network, address); return err })
			return conn, err
		},
	}}
	response, err := client.Post("https://127.0.0.1:9090/mutate-pod-creation", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, answer)
	}
	return answer, err
}

// applyReview makes of the pod what the webhook answered.
func applyReview(t *testing.T, answer []byte, pod object, log string) object {
	t.Helper()
	var review struct {
		Response struct {
			Allowed bool
			Patch   []byte
			Result  any `json:"status"`
		}
	}
	if err := json.Unmarshal(answer, &review); err != nil {
		t.Fatalf("%v in %s", err, answer)
	}
	if !review.Response.Allowed || review.Response.Patch == nil {
		t.Fatalf("not injected: %s: %s", answer, log)
	}
	patch, err := jsonpatch.DecodePatch(review.Response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	after, err := patch.Apply(before)
	if err != nil {
		t.Fatalf("%v: %s", err, review.Response.Patch)
	}
	return parse(t, string(after))
}
