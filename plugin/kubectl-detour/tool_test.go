package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/detour-cni/detour/pkg/build"
)

func TestImageAndNamespaceOfTheTool(t *testing.T) {
	const daemonset, namespace = "/apis/apps/v1/namespaces/detour-system/daemonsets/detour-agent", "/api/v1/namespaces/detour-system"
	agent := cluster{daemonset: `{spec: {template: {spec: {imagePullSecrets: [{name: s}], containers: [{image: "r/detour:1", imagePullPolicy: Never}]}}}}`}
	for _, tt := range []struct {
		name             string
		of               cluster
		image, namespace string
		want, err        string // NAMESPACE IMAGE POLICY SECRETS
	}{
		{name: "the agent's", of: agent, want: "detour-system r/detour:1 Never 1"},
		{name: "another namespace", of: agent, namespace: "tools", want: "tools r/detour:1 Never 0"},
		{name: "another image", of: agent, image: "x:1", want: "detour-system x:1  0"},
		{name: "both", of: cluster{}, image: "x:1", namespace: "tools", want: "tools x:1  0"},
		{name: "no agent", of: cluster{}, image: "x:1", want: "kube-system x:1  0"},
		{name: "no agent, its namespace", of: cluster{namespace: "{}"}, image: "x:1", want: "detour-system x:1  0"},
		{name: "hidden", of: cluster{namespace: "forbidden", daemonset: "forbidden"}, image: "x:1", want: "kube-system x:1  0"},
		{name: "no image", of: cluster{}, err: "no image for detourctl: pass --image"},
		{name: "no image to be seen", of: cluster{daemonset: "forbidden"}, namespace: "tools", err: "daemonsets/detour-agent is forbidden"},
	} {
		o := options{image: tt.image, toolNamespace: tt.namespace}
		got, err := o.tool(t.Context(), tt.of.client(t))
		if tt.err != "" {
			wantError(t, tt.name, err, tt.err)
			continue
		}
		text := strings.Join([]string{got.namespace, got.image, string(got.pullPolicy), string(rune('0' + len(got.pullSecrets)))}, " ")
		if err != nil || text != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.name, text, err, tt.want)
		}
	}
}

// Without an agent, a release brings its own image. The version is every test's: not in parallel.
func TestAReleaseKnowsItsImage(t *testing.T) {
	defer func(v string) { build.Version = v }(build.Version)
	for version, want := range map[string]string{
		"v0.1.0": "ghcr.io/detour-cni/detour:v0.1.0", "v0.1.0-5-gabcdef0": "", "abcdef0": "", "development": "",
	} {
		build.Version = version
		got, err := (&options{}).tool(t.Context(), cluster{}.client(t))
		if got.image != want || (err != nil) != (want == "") {
			t.Errorf("%s: image %q, %v, want %q", version, got.image, err, want)
		}
	}
	build.Version = "v0.1.0"
	agent := cluster{"/apis/apps/v1/namespaces/detour-system/daemonsets/detour-agent": `{spec: {template: {spec: {containers: [{image: "r/detour:1"}]}}}}`}
	if got, err := (&options{}).tool(t.Context(), agent.client(t)); err != nil || got.image != "r/detour:1" {
		t.Errorf("beside an agent the image is %q, %v", got.image, err)
	}
}

func TestThePodHasTheRightsOfItsVerbAndNoOthers(t *testing.T) {
	targets := map[string]target{"pod": {node: "n1", pod: &corev1.Pod{}}, "node": {node: "n1"}}
	for _, v := range verbs {
		for _, want := range v.rights {
			args := strings.Fields("-o json " + want.with)
			p := tool{namespace: "tools", image: "x"}.podFor(v, targets[want.of], args, nil)
			container := p.Spec.Containers[0]
			var mounted []string
			for i, m := range container.VolumeMounts {
				if !m.ReadOnly || p.Spec.Volumes[i].HostPath.Path != m.MountPath {
					t.Errorf("%s: mount %+v of %+v", v.name, m, p.Spec.Volumes[i])
				}
				mounted = append(mounted, m.MountPath)
			}
			added := strings.Trim(fmt.Sprint(container.SecurityContext.Capabilities.Add), "[]")
			if added != want.capabilities || strings.Join(mounted, " ") != want.folders ||
				p.Spec.HostPID != want.processes || *p.Spec.AutomountServiceAccountToken || p.Spec.NodeName != "n1" {
				t.Errorf("%s of a %s: %+v", v.name, want.of, p.Spec)
			}
			if command := strings.Join(container.Command, " "); !strings.HasPrefix(command, "/detourctl "+v.name+" ") || !strings.HasSuffix(command, strings.Join(without(args, fromNode), " ")) {
				t.Errorf("%s of a %s runs %s", v.name, want.of, command)
			}
		}
	}
}

func TestAnAnswerThatIsWatchedMayTakeLonger(t *testing.T) {
	conns := verbs[slices.IndexFunc(verbs, func(v verb) bool { return v.name == "conns" })]
	for args, want := range map[string]int64{"-o json": 600, "--watch": 3600, "--watch=true": 3600, "-w": 3600, "--watch=false": 600} {
		if got := *(tool{}).podFor(conns, target{node: "n1", pod: &corev1.Pod{}}, strings.Fields(args), nil).Spec.ActiveDeadlineSeconds; got != want {
			t.Errorf("%s: got %d s, want %d", args, got, want)
		}
	}
}

// The README has the table of rights as the code does.
func TestTheReadmeHasTheRights(t *testing.T) {
	readme, err := os.ReadFile("../detourctl/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rightsRows() {
		row[0] = "`" + row[0] + "`"
		if line := "| " + strings.Join(row, " | ") + " |\n"; !strings.Contains(string(readme), line) {
			t.Errorf("it lacks %s", line)
		}
	}
}
