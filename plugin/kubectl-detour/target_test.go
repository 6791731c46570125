package main

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// pod is one of namespace shop with a state: ready, running, ending, ended or waiting.
func pod(name, state string) string {
	fields := map[string]string{
		"ready":   "spec: {nodeName: n1}, status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}",
		"running": "spec: {nodeName: n1}, status: {phase: Running, podIP: 'fd00::1'}",
		"ending":  "spec: {nodeName: n1}, status: {phase: Running, conditions: [{type: Ready, status: 'True'}]}",
		"ended":   "spec: {nodeName: n1}, status: {phase: Succeeded}",
		"waiting": "status: {phase: Pending}",
	}[state]
	deleted := ""
	if state == "ending" {
		deleted = ", deletionTimestamp: '2026-01-01T00:00:00Z'"
	}
	return fmt.Sprintf("{metadata: {namespace: shop, name: %s, uid: uid-%[1]s%s}, %s}", name, deleted, fields)
}

const workload = "{spec: {selector: {matchLabels: {app: x}}}}"

func TestTargetsAreFound(t *testing.T) {
	all := cluster{
		"/api/v1/namespaces/shop/pods/web":                  pod("web", "ready"),
		"/api/v1/namespaces/shop/pods/done":                 pod("done", "ended"),
		"/api/v1/namespaces/shop/pods/new":                  pod("new", "waiting"),
		"/api/v1/namespaces/shop/pods/hidden":               "forbidden",
		"/apis/apps/v1/namespaces/shop/deployments/web":     workload,
		"/apis/apps/v1/namespaces/shop/statefulsets/web":    workload,
		"/apis/apps/v1/namespaces/shop/daemonsets/web":      workload,
		"/apis/apps/v1/namespaces/shop/replicasets/web":     workload,
		"/apis/batch/v1/namespaces/shop/jobs/web":           workload,
		"/apis/apps/v1/namespaces/shop/deployments/stopped": "{spec: {selector: {matchLabels: {app: stopped}}}}",
		"/api/v1/namespaces/shop/pods?app=stopped":          "{items: [" + pod("d", "ended") + "]}",
		"/api/v1/namespaces/shop/pods?app=x": "{items: [" + strings.Join([]string{
			pod("a", "running"), pod("b", "ended"), pod("c", "ready"), pod("d", "waiting"), pod("e", "ending"), pod("f", "ready"),
		}, ", ") + "]}",
	}.client(t)
	for _, tt := range []struct{ name, first, every, err string }{
		{name: "web", first: "web", every: "web"},
		{name: "pod/web", first: "web", every: "web"},
		{name: "po/shop/web", first: "web", every: "web"},
		{name: "node/n1", first: "node n1", every: "node n1"},
		{name: "deploy/web", first: "c", every: "c f a"},
		{name: "deployments/web", first: "c", every: "c f a"},
		{name: "sts/web", first: "c", every: "c f a"},
		{name: "daemonset/web", first: "c", every: "c f a"},
		{name: "rs/web", first: "c", every: "c f a"},
		{name: "job/web", first: "c", every: "c f a"},
		{name: "pod/gone", err: "there is no pod shop/gone"},
		{name: "pod/hidden", err: "get pod shop/hidden: /api/v1/namespaces/shop/pods/hidden is forbidden"},
		{name: "pod/done", err: "pod shop/done has ended"},
		{name: "pod/new", err: "pod shop/new is on no node yet"},
		{name: "deploy/other/web", err: "there is no deploy other/web"},
		{name: "deploy/stopped", err: "deploy shop/stopped: none of its 1 pods runs"},
		{name: "svc/web", err: "svc/web: this is for pod, node, deploy, sts, ds, rs, job"},
		{name: "pod/", err: `"pod/" is neither KIND/NAME nor KIND/NAMESPACE/NAME`},
		{name: "pod/..", err: `".." is no name: it may not be '..'`},
		{name: "../web", err: "../web: this is for pod"},
		{name: "pod/../web", err: `".." is no name`},
		{name: "deploy/a%2fb", err: `"a%2fb" is no name: it may not contain '%'`},
		{name: "a/b/c/d", err: `"a/b/c/d" is neither`},
		{name: "node/shop/n1", err: `"node/shop/n1" is neither`},
	} {
		for every, want := range map[bool]string{false: tt.first, true: tt.every} {
			r, err := parseReference(tt.name, "shop")
			var targets []target
			if err == nil {
				targets, err = all.resolve(t.Context(), r, every)
			}
			if tt.err != "" {
				wantError(t, tt.name, err, tt.err)
				continue
			}
			var got []string
			for _, of := range targets {
				if of.pod == nil {
					got = append(got, of.String())
				} else {
					got = append(got, of.pod.Name)
				}
			}
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("%s, every %t: got %q, %v, want %s", tt.name, every, got, err, want)
			}
		}
	}
}

func TestDetourctlIsToldThePod(t *testing.T) {
	static := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "etcd", UID: "copy", Annotations: map[string]string{
		"kubernetes.io/config.hash": "original", "kubernetes.io/config.mirror": "original",
	}}}
	var web corev1.Pod
	if err := yaml.Unmarshal([]byte(pod("web", "ready")), &web); err != nil {
		t.Fatal(err)
	}
	for want, of := range map[string]target{
		"shop/web --pod-uid uid-web":          {pod: &web},
		"kube-system/etcd --pod-uid original": {pod: static},
		"":                                    {node: "n1"},
	} {
		if got := strings.Join(verb{positional: true}.targetArgs(of), " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		flags := strings.TrimSpace("--pod " + want)
		if of.pod == nil {
			flags = "--node"
		}
		if got := strings.Join(verb{}.targetArgs(of), " "); got != flags {
			t.Errorf("got %s, want %s", got, flags)
		}
	}
}

func TestANodeMustBeAbleToStartAPod(t *testing.T) {
	c := cluster{
		"/api/v1/nodes/ready":   "{status: {conditions: [{type: Ready, status: 'True'}]}}",
		"/api/v1/nodes/unready": "{status: {conditions: [{type: Ready, status: 'False', message: no network}]}}",
		"/api/v1/nodes/lost":    "{status: {conditions: [{type: Ready, status: Unknown, message: Kubelet stopped posting node status.}]}}",
		"/api/v1/nodes/hidden":  "forbidden",
	}.client(t)
	for _, name := range []string{"ready", "unready", "hidden"} {
		if err := c.checkNode(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	wantError(t, "lost", c.checkNode(t.Context(), "lost"), "node lost can't start a pod: Kubelet stopped posting node status.")
	wantError(t, "gone", c.checkNode(t.Context(), "gone"), "there is no node gone")
}
