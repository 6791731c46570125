//go:build kubeapi

package apitest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/agentapi"
)

// kubectlSays runs kubectl, with a manifest as its standard input, and returns all that it prints, and whether it failed.
func kubectlSays(t *testing.T, manifest string, args ...string) (text string, failed bool) {
	t.Helper()
	cmd := kubectlCommand(t, args...)
	cmd.Stdin = strings.NewReader(manifest)
	out, err := cmd.CombinedOutput()
	t.Logf("$ kubectl %s\n%s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out)), err != nil
}

func kubectlApplies(t *testing.T, manifest string) (text string, failed bool) {
	t.Helper()
	return kubectlSays(t, manifest, "apply", "-f", "-")
}

// newCheckScene is a webhook that runs and whose mesh has a configuration.
func newCheckScene(t *testing.T) *hookScene {
	t.Helper()
	s := newHookScene(t)
	mustApply(t, mustParse(t, fmt.Sprintf("{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: %s, name: %s}, spec: {}}", s.mesh, meshConfigName)))
	s.start()
	return s
}

// The whole way: the mesh injects, the webhook takes the init container out and checks what ADD would see. A pod may have no name yet.
func TestWhatKubectlSaysOfAPod(t *testing.T) {
	t.Parallel()
	s := newCheckScene(t)
	enforce, remove := s.label("check", "enforce"), s.label("remove-init", "enabled")
	namespace := admitting(t, "inject=osm", remove, enforce)
	run := func(namespace, name, exclude string) (string, bool) {
		return kubectlSays(t, "", "run", name, "-n", namespace, "--image=app", "--annotations=openservicemesh.io/outbound-port-exclusion-list="+exclude)
	}
	sentence := "denied the request: pod " + namespace + `/web: openservicemesh.io/outbound-port-exclusion-list: entry 2 "redis": a port is 1 to 65535`
	if got, failed := run(namespace, "web", "6379,redis"); !failed || !strings.HasSuffix(got, sentence) {
		t.Errorf("%s\nwant %s", got, sentence)
	}
	if got, failed := run(namespace, "web", "6379"); failed || got != "pod/web created" {
		t.Error(got)
	}
	// ADD leaves a pod alone that programs itself.
	if got, failed := run(admitting(t, "inject=osm", enforce), "web", "redis"); failed || got != "pod/web created" {
		t.Error(got)
	}

	for metadata, want := range map[string]string{"name: metrics": "pod/metrics created", "generateName: metrics-": "pod/metrics-"} {
		manifest := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, %s}, spec: {containers: [{name: app, image: app, ports: [{containerPort: 15010}]}]}}", namespace, metadata)
		got, failed := kubectlSays(t, manifest, "create", "-f", "-")
		if want = "Warning: container \"app\" declares port 15010, which is the proxy's: only one of them can listen\n" + want; failed || !strings.HasPrefix(got, want) {
			t.Errorf("%s\nwant %s", got, want)
		}
		bad := strings.Replace(manifest, metadata, metadata+", annotations: "+badExclusion, 1)
		if got, failed := kubectlSays(t, bad, "create", "-f", "-"); !failed || !strings.Contains(got, "denied the request: pod "+namespace+"/metrics") {
			t.Error(got)
		}
	}
}

// One pod, applied where checks are off, warn and enforce, and started as a runtime starts it.
func TestKubectlApplyAndADDSayTheSame(t *testing.T) {
	t.Parallel()
	hooks := newCheckScene(t)
	for _, scenario := range []string{"osm/refuse-port-zero", "osm/refuse-uid-of-the-proxy", "osm/refuse-injection-value"} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, scenario)
			added := s.call("ADD")
			if added.Code != agentapi.CodeRefused {
				t.Fatalf("ADD: %+v", added.Error)
			}
			for check, want := range map[string]string{
				"off": "pod/web created", "warn": "Warning: it will not start: " + added.Msg, "enforce": "denied the request: " + added.Msg,
			} {
				namespace := newNamespace(t, hooks.label("check", check))
				got, failed := kubectlApplies(t, strings.Replace(s.scenario.Section("pod.yaml"), "namespace: shop", "namespace: "+namespace, 1))
				got = strings.ReplaceAll(got, namespace, s.namespace)
				if failed != (check == "enforce") || !strings.Contains(got+"\n", want+"\n") || strings.Contains(got, "Warning") != (check == "warn") {
					t.Errorf("%s: %s\nwant %s", check, got, want)
				}
			}
		})
	}
}

func TestWhatKubectlSaysOfATemplate(t *testing.T) {
	t.Parallel()
	s := newCheckScene(t)
	warn, enforce := newNamespace(t, s.label("check", "warn")), newNamespace(t, s.label("check", "enforce"))
	const template = "template: {metadata: {labels: {app: web}, annotations: {openservicemesh.io/outbound-port-exclusion-list: redis}}, spec: {containers: [{name: app, image: app}]}}"
	const once = "template: {metadata: {annotations: {openservicemesh.io/outbound-port-exclusion-list: redis}}, spec: {restartPolicy: Never, containers: [{name: app, image: app}]}}"
	const selector = "selector: {matchLabels: {app: web}}, "
	for kind, w := range map[string]struct{ group, spec string }{
		"Deployment":  {"apps/v1", selector + template},
		"DaemonSet":   {"apps/v1", selector + template},
		"StatefulSet": {"apps/v1", "serviceName: web, " + selector + template},
		"Job":         {"batch/v1", once},
		"CronJob":     {"batch/v1", "schedule: '* * * * *', jobTemplate: {spec: {" + once + "}}"},
	} {
		manifest := fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: %s, name: web}, spec: {%s}}", w.group, kind, warn, w.spec)
		want := "Warning: " + kind + ` web: its pods would not start if the mesh injects its sidecar: openservicemesh.io/outbound-port-exclusion-list: entry 1 "redis": a port is 1 to 65535` + "\n"
		for _, each := range []string{manifest, strings.Replace(manifest, warn, enforce, 1)} {
			if got, failed := kubectlApplies(t, each); failed || !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "/web created") {
				t.Errorf("%s: %s\nwant %s", kind, got, want)
			}
		}
		good := strings.NewReplacer("redis", "'6379'", "name: web}", "name: good}").Replace(manifest)
		if got, failed := kubectlApplies(t, good); failed || strings.Contains(got, "Warning") {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

func TestWhatKubectlSaysOfAMeshConfig(t *testing.T) {
	t.Parallel()
	s := newCheckScene(t)
	ref := s.conf.Dialect.Config.String()
	const restart = "spec.traffic.outboundPortExclusionList: running pods keep their rules until they are restarted (kubectl rollout restart); `kubectl detour verify` shows which"
	apply := func(version, name, traffic string) (string, bool) {
		return kubectlApplies(t, fmt.Sprintf("{apiVersion: config.openservicemesh.io/%s, kind: MeshConfig, metadata: {namespace: %s, name: %s}, spec: {traffic: {%s}}}",
			version, s.mesh, name, traffic))
	}
	s.eventually("MeshConfigs are checked", func() bool {
		got, failed := apply("v1alpha2", meshConfigName, "outboundIPRangeExclusionList: [10.0.0.0]")
		return failed && strings.Contains(got, ref)
	})
	for _, step := range []struct{ change, version, name, traffic, want string }{
		{"that ADD could not read", "v1alpha2", meshConfigName, "outboundIPRangeExclusionList: [10.0.0.0]", `denied the request: ` + ref + `: spec.traffic.outboundIPRangeExclusionList: entry 1 "10.0.0.0": a range is an address and a prefix length, such as 10.0.0.0/8 or fd00::/8`},
		{"that matters", "v1alpha2", meshConfigName, "outboundPortExclusionList: [6379]", "Warning: " + ref + ": " + restart},
		{"that does not matter", "v1alpha2", meshConfigName, "outboundPortExclusionList: [6379], enableEgress: true", ""},
		{"by another version", "v1alpha1", meshConfigName, "outboundPortExclusionList: [6380]", "Warning: " + ref + ": " + restart},
		{"of another object", "v1alpha2", "preset", "outboundIPRangeExclusionList: [10.0.0.0]", ""},
	} {
		got, failed := apply(step.version, step.name, step.traffic)
		if failed != strings.HasPrefix(step.want, "denied") || !strings.Contains(got, step.want) || step.want == "" && strings.Contains(got, "Warning") {
			t.Errorf("a change %s: %s\nwant %s", step.change, got, step.want)
		}
	}
	// What the pods of now are checked by is what the MeshConfig says now.
	code, body, err := kubernetes.admin.send(http.MethodDelete, meshConfigsOf(s.mesh)+"/"+meshConfigName, nil)
	if err != nil || code != http.StatusOK {
		t.Fatal(code, string(body), err)
	}
	namespace := newNamespace(t, s.label("check", "warn"))
	manifest := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, generateName: web-}, spec: {%s}}", namespace, withoutInit)
	s.eventually("that it is gone is known", func() bool {
		got, _ := kubectlSays(t, manifest, "create", "-f", "-")
		return strings.Contains(got, "Warning: "+ref+" does not exist: the mesh's defaults hold")
	})
}
