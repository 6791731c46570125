//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// workload makes pods and changes them as their controller, the scheduler and the kubelets would.
type workload struct {
	namespace string
	client    *client
	pod       []byte // what the controller posts, but for the name
	made      atomic.Int64
}

// placed is a pod on a node.
type placed struct {
	name, uid string
	node      int // its number
}

// writers is how many requests the workload makes at once.
const writers = 16

func newWorkload(t *testing.T) *workload {
	t.Helper()
	w := &workload{namespace: newNamespace(t), client: kubernetes.as("")}
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: "+w.namespace+", name: web}}"))
	admin := kubernetes.admin.http.Transport.(*http.Transport).Clone()
	admin.MaxIdleConnsPerHost = writers
	w.client.http = &http.Client{Transport: admin, Timeout: 3 * requestTime}
	objects, err := readManifest("../../scripts/bench/objects/served.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pod := objects[0]
	for _, field := range []string{"uid", "resourceVersion", "creationTimestamp", "managedFields", "generateName"} {
		delete(pod.Object["metadata"].(fields), field)
	}
	delete(pod.Object, "status")
	delete(pod.Object["spec"].(fields), "nodeName")
	pod.SetNamespace(w.namespace)
	pod.Object["metadata"].(fields)["labels"].(fields)["linkerd.io/control-plane-ns"] = "linkerd" // a peer asks for it
	for i := range 5 {                                                                            // as an application has them
		for _, c := range pod.Object["spec"].(fields)["containers"].([]any) {
			container := c.(fields)
			container["env"] = append(container["env"].([]any), fields{
				"name": fmt.Sprintf("SETTING_%d", i), "value": fmt.Sprintf("https://setting-%d.%s.svc.cluster.local:8443/v1", i, w.namespace),
			})
		}
	}
	if w.pod, err = json.Marshal(pod.Object); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *workload) path(p placed, rest string) string {
	return podsOf(w.namespace) + "/" + p.name + rest
}

// create makes a pod, which is on the node if that has a name.
func (w *workload) create(node int, nodeName string) (placed, error) {
	var pod fields
	if err := json.Unmarshal(w.pod, &pod); err != nil {
		return placed{}, err
	}
	p := placed{name: fmt.Sprintf("web-7d4b9c6f58-%d", w.made.Add(1)), node: node}
	pod["metadata"].(fields)["name"] = p.name
	if nodeName != "" {
		pod["spec"].(fields)["nodeName"] = nodeName
	}
	body, err := w.client.expect(http.MethodPost, podsOf(w.namespace)+"?fieldManager=kube-controller-manager", pod, http.StatusCreated)
	if err != nil {
		return p, err
	}
	var made struct{ Metadata struct{ UID string } }
	err = json.Unmarshal(body, &made)
	p.uid = made.Metadata.UID
	return p, err
}

// bind puts the pod on the node, as the scheduler does.
func (w *workload) bind(p placed, nodeName string) error {
	_, err := w.client.expect(http.MethodPost, w.path(p, "/binding?fieldManager=kube-scheduler"), fields{
		"apiVersion": "v1", "kind": "Binding", "metadata": fields{"name": p.name, "uid": p.uid},
		"target": fields{"apiVersion": "v1", "kind": "Node", "name": nodeName},
	}, http.StatusCreated)
	return err
}

// phase is what a pod's status says at one time.
type phase struct {
	phase               string
	sandbox, app, proxy bool // which of them is ready
	running             bool
	ended               bool
}

// starting are the updates of a starting pod's status: containers are created, the sandbox is ready, containers run, the proxy is
// ready, and then the application.
var starting = []phase{
	{phase: "Pending"},
	{phase: "Pending", sandbox: true},
	{phase: "Running", sandbox: true, running: true},
	{phase: "Running", sandbox: true, running: true, proxy: true},
	{phase: "Running", sandbox: true, running: true, proxy: true, app: true},
}

// update writes the pod's status as its kubelet does.
func (w *workload) update(p placed, now phase) error {
	stamp := time.Now().UTC().Format(time.RFC3339)
	condition := func(kind string, is bool) fields {
		c := fields{"type": kind, "status": "True", "lastTransitionTime": stamp, "lastProbeTime": nil}
		if !is {
			c["status"], c["reason"], c["message"] = "False", "ContainersNotReady", "containers with unready status: [web envoy]"
		}
		return c
	}
	container := func(name, image string, ready bool) fields {
		state, id := fields{"waiting": fields{"reason": "ContainerCreating"}}, ""
		switch {
		case now.ended:
			state = fields{"terminated": fields{"exitCode": 0, "reason": "Completed", "startedAt": stamp, "finishedAt": stamp}}
		case now.running:
			state = fields{"running": fields{"startedAt": stamp}}
			id = image + "@sha256:0d6c1a528c0e4f0b9a573f1f5c7f2a014a1f6f0e6d5b45b39c6251d3f1f6f0aa"
		}
		return fields{"name": name, "image": image, "imageID": id, "ready": ready, "started": now.running, "restartCount": 0, "state": state}
	}
	status := fields{
		"phase": now.phase, "qosClass": "Burstable", "hostIP": "192.0.2.1", "startTime": stamp,
		"conditions": []fields{
			condition("PodReadyToStartContainers", now.sandbox), condition("Initialized", true),
			condition("Ready", now.app), condition("ContainersReady", now.app), condition("PodScheduled", true),
		},
		"containerStatuses": []fields{
			container("envoy", "envoyproxy/envoy:v1.19.3", now.proxy), container("web", "registry.example/shop/web:1.14.2", now.app),
		},
	}
	if now.sandbox {
		status["podIP"], status["podIPs"] = "10.77.0.2", []fields{{"ip": "10.77.0.2"}}
	}
	code, answer, err := w.client.sendAs("application/strategic-merge-patch+json", http.MethodPatch,
		w.path(p, "/status?fieldManager=kubelet"), fields{"metadata": fields{"uid": p.uid}, "status": status})
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("update the status of %s: %d %.300s", p.name, code, answer)
	}
	return err
}

// start starts a pod; add is called when the runtime would call the plugin.
func (w *workload) start(node int, nodeName string, add func(placed) error) (placed, error) {
	p, err := w.create(node, "")
	if err == nil {
		err = w.bind(p, nodeName)
	}
	for i := 0; err == nil && i < len(starting); i++ {
		if err = w.update(p, starting[i]); err == nil && i == 0 {
			err = add(p)
		}
	}
	return p, err
}

// place makes a pod that has been running for long, with few requests.
func (w *workload) place(node int, nodeName string) (placed, error) {
	p, err := w.create(node, nodeName)
	if err == nil {
		err = w.update(p, starting[len(starting)-1])
	}
	return p, err
}

// end deletes a pod as its controller and its kubelet do.
func (w *workload) end(p placed) error {
	if _, err := w.client.expect(http.MethodDelete, w.path(p, ""), nil, http.StatusOK); err != nil {
		return err
	}
	if err := w.update(p, phase{phase: "Running", sandbox: true, ended: true}); err != nil {
		return err
	}
	_, err := w.client.expect(http.MethodDelete, w.path(p, "?gracePeriodSeconds=0"), nil, http.StatusOK)
	return err
}
