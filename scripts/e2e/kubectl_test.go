//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

// standInImage has testdata/e2e/stand-in.sh as /detourctl.
const standInImage = "detour.test/stand-in:1"

// detourCommand returns a command of the administrator's that runs kubectl detour. kubectl wants no flags ahead of a plugin's name.
func detourCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := kubernetes.Kubectl(ctx)
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "PATH="+folder("BIN")+":"+os.Getenv("PATH"))
	cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool {
		if config, ok := strings.CutPrefix(arg, "--kubeconfig="); ok {
			cmd.Env = append(cmd.Env, "KUBECONFIG="+config)
		}
		return strings.HasPrefix(arg, "--kubeconfig=") || strings.HasPrefix(arg, "--cache-dir=")
	})
	cmd.Args = append(append(cmd.Args, "detour"), args...)
	return cmd
}

// answer is what a command said, and its exit code.
type answer struct {
	out, err string
	code     int
}

// detour runs kubectl detour, which must leave no pod.
func detour(t *testing.T, args ...string) answer {
	t.Helper()
	cmd := detourCommand(t.Context(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	wantNoToolPods(t, args)
	return answer{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// standIn runs kubectl detour with the stand-in for detourctl.
func standIn(t *testing.T, args ...string) answer {
	t.Helper()
	return detour(t, append(args, "--image="+standInImage)...)
}

func wantNoToolPods(t *testing.T, args []string) {
	t.Helper()
	if left := toolPodsNow(t); left != "" {
		t.Errorf("kubectl detour %q left %s", args, left)
	}
}

// toolPodsNow are detourctl's pods.
func toolPodsNow(t *testing.T) string {
	t.Helper()
	return kubectl(t, "get", "pods", "-o", "name", "--all-namespaces", "--selector=app.kubernetes.io/name=kubectl-detour")
}

// importStandIn puts the stand-in for detourctl on the node.
func importStandIn(t *testing.T) {
	t.Helper()
	must(t, image.Import(kubernetes.Shell(t.Context(), image.ImportScript), image.Image{
		Name:       standInImage,
		Files:      []image.File{{Path: "/detourctl", From: "../../testdata/e2e/stand-in.sh"}, {Path: "/busybox", From: "/bin/busybox"}},
		Entrypoint: []string{"/detourctl"},
	}))
}

// nodeOf is the pod's node.
func nodeOf(t *testing.T, namespace, pod string) string {
	t.Helper()
	return kubectl(t, "get", "pod", "--namespace", namespace, pod, "-o", "jsonpath={.spec.nodeName}")
}

func TestKubectlDetourPassesOnOutputAndExitCode(t *testing.T) {
	installDetour(t)
	importStandIn(t)
	namespace := newNamespace(t, "asked", restricted)
	startServer(t, namespace)
	uid := kubectl(t, "get", "pod", "--namespace", namespace, "server", "-o", "jsonpath={.metadata.uid}")
	vip := kubectl(t, "get", "service", "--namespace", namespace, "server", "-o", "jsonpath={.spec.clusterIP}")
	ip := podIPs(t, namespace, "server")[0]
	ofPod := "--pod " + namespace + "/server --pod-uid " + uid
	for _, tt := range []struct{ args, want string }{
		{"conns pod/server --exit=3", "conns " + ofPod + " --exit=3"},
		{"conns server", "conns " + ofPod},
		{"verify pod/server -o json", "verify " + namespace + "/server --pod-uid " + uid + " -o json"},
		{"trace pod/server --out --to svc/server", "trace " + ofPod + " --out --to " + vip + ":8000"},
		{"trace pod/server --out --to=pod/server:9000 --from pod/server", "trace " + ofPod + " --out --to=" + ip + ":9000 --from " + ip},
		{"trace node/" + nodeOf(t, namespace, "server") + " --in cni0", "trace --node --in cni0"},
		{"verify node/" + nodeOf(t, namespace, "server"), "verify"},
		{"doctor node/" + nodeOf(t, namespace, "server"), "doctor --root /proc/1/root"},
		{"probe pod/server --exit=95", "probe --exit=95"},
	} {
		want := answer{out: "called: " + tt.want + "\n", err: "user 0\n"}
		if strings.HasPrefix(tt.args, "probe") {
			want.err = "user 65532\n"
		}
		if _, code, ok := strings.Cut(tt.args, "--exit="); ok {
			want.code, _ = strconv.Atoi(code)
		}
		if got := standIn(t, append(strings.Fields(tt.args), "--namespace="+namespace)...); got != want {
			t.Errorf("%s: got %+v, want %+v", tt.args, got, want)
		}
	}
}

func TestKubectlDetourChoosesAWorkloadsPods(t *testing.T) {
	importStandIn(t)
	namespace := newNamespace(t, "twins")
	apply(t, manifest(t, "workload.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage}))
	kubectl(t, "rollout", "status", "--namespace", namespace, "deployment/twins", "--timeout="+atMost.String())
	for verb, pods := range map[string]int{"conns": 1, "verify": 2} {
		got := standIn(t, verb, "deploy/twins", "--namespace", namespace, "--exit=1")
		if got.code != 1 || strings.Count(got.out, "called: ") != pods || strings.Count(got.err, "pod "+namespace+"/twins-") != pods {
			t.Errorf("%s: got %+v, want %d pods", verb, got, pods)
		}
	}
}

// Each in one sentence on standard error, with exit code 2 and without a pod that stays.
func TestKubectlDetourSaysWhyNot(t *testing.T) {
	importStandIn(t)
	namespace := newNamespace(t, "why-not", restricted)
	startServer(t, namespace)
	for args, want := range map[string]string{
		"conns pod/gone":                                      "there is no pod why-not/gone",
		"trace node/gone":                                     "there is no node gone",
		"conns deploy/gone":                                   "there is no deploy why-not/gone",
		"conns pod/server pod/other":                          "one target at a time: pod/server or pod/other",
		"conns":                                               "conns whom?",
		"conns svc/server":                                    "svc/server: this is for pod, node, ",
		"conns --watch pod/server":                            "name the target ahead of --watch",
		"probe node/gone":                                     "probe is about a pod: name one instead of node gone",
		"trace pod/server --to svc/gone":                      "--to svc/gone: there is no svc why-not/gone",
		"trace pod/server --to svc/server:1":                  "service why-not/server has 8000/TCP: choose one",
		"conns pod/server --tool-namespace=why-not":           "kubectl label namespace why-not pod-security.kubernetes.io/enforce=privileged",
		"conns pod/server --tool-namespace=gone":              `namespaces "gone" not found`,
		"conns pod/server --image=:":                          "can't start image :: InvalidImageName",
		"conns pod/server --image=127.0.0.1:1/x":              "can't start image 127.0.0.1:1/x: ErrImagePull",
		"conns pod/server --image=" + workloadImage:           "does not start /detourctl: pass --image with one that has it",
		"probe pod/server --image=127.0.0.1:1/x":              "can't start image 127.0.0.1:1/x: ErrImagePull",
		"conns pod/server --pod-running-timeout=1ms":          "did not start within 1ms: ",
		"conns pod/server --as=nobody":                        `User "nobody" cannot get resource "pods"`,
		"conns pod/server --server=https://127.0.0.1:1":       "connection refused",
		"conns pod/server --context=gone":                     `context "gone" does not exist`,
		"conns pod/server --kubeconfig=/gone":                 "/gone: no such file or directory",
		"conns pod/../x":                                      `".." is no name`,
		"conns pod/server --dry-run --pod-running-timeout=1x": `invalid argument "1x"`,
	} {
		line := append(strings.Fields(args), "--namespace="+namespace)
		if !strings.Contains(args, "--image") {
			line = append(line, "--image="+standInImage)
		}
		got := detour(t, line...)
		if got.code != 2 || got.out != "" || !strings.Contains(got.err, want) || strings.Count(got.err, "\n") != 1 || !strings.HasPrefix(got.err, "kubectl detour: ") {
			t.Errorf("%s: got %+v, want %s", args, got, want)
		}
	}
}

// However kubectl detour is ended, its pod has gone before it.
func TestKubectlDetourTakesItsPodAlong(t *testing.T) {
	importStandIn(t)
	namespace := newNamespace(t, "watched")
	startServer(t, namespace)
	for _, tt := range []struct {
		how   string
		end   func(*exec.Cmd, io.Closer)
		early bool // as soon as there is a pod
	}{
		{"Ctrl-C", signalled(syscall.SIGINT), false},
		{"Ctrl-C while the pod starts", signalled(syscall.SIGINT), true},
		{"SIGTERM", signalled(syscall.SIGTERM), false},
		{"a closed terminal", signalled(syscall.SIGHUP), false},
		{"a reader that leaves", func(_ *exec.Cmd, out io.Closer) { out.Close() }, false},
	} {
		cmd := detourCommand(t.Context(), "conns", "pod/server", "--namespace="+namespace, "--watch", "--image="+standInImage)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		if tt.early {
			eventually(t, func() error {
				if toolPodsNow(t) == "" {
					return errors.New("there is no pod")
				}
				return nil
			})
		} else {
			wantStream(t, out)
		}
		tt.end(cmd, out)
		go io.Copy(io.Discard, out) // so that it can end
		_ = cmd.Wait()              // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("%s: exit code %d, want 130", tt.how, code)
		}
		wantNoToolPods(t, []string{tt.how})
		if left := shell(t, "pgrep -f '[/]detourctl' || :"); left != "" {
			t.Errorf("%s: detourctl still runs: %s", tt.how, left)
		}
	}
}

// wantStream waits for the stand-in's second line.
func wantStream(t *testing.T, out io.Reader) {
	t.Helper()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "watching" {
			return
		}
	}
	t.Fatal("it did not stream")
}

// signalled sends a signal to the command itself, which may be the child of an nsenter that passes no signals on.
func signalled(signal syscall.Signal) func(*exec.Cmd, io.Closer) {
	return func(cmd *exec.Cmd, _ io.Closer) {
		pid := cmd.Process.Pid
		children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", pid))
		if child, atoiErr := strconv.Atoi(strings.TrimSpace(string(children))); err == nil && atoiErr == nil {
			pid = child
		}
		_ = syscall.Kill(pid, signal) // else it does not end
	}
}

// A kubelet that does not answer neither starts the pod nor confirms its end.
func TestKubectlDetourLeavesNoPodToADeadKubelet(t *testing.T) {
	mustBreak(t)
	importStandIn(t)
	namespace := newNamespace(t, "frozen")
	startServer(t, namespace)
	kubelet := strings.TrimSpace(shell(t, "pgrep -x kubelet"))
	shell(t, "kill -STOP "+kubelet)
	defer shell(t, "kill -CONT "+kubelet)
	got := standIn(t, "conns", "pod/server", "--namespace="+namespace, "--pod-running-timeout=3s")
	if got.code != 2 || !strings.Contains(got.err, "did not start within 3s: ") || !strings.Contains(got.err, "kubelet") {
		t.Errorf("got %+v", got)
	}
}

// What a kubectl detour that was killed leaves, the kubelet ends and the next one deletes.
func TestTheNextKubectlDetourDeletesWhatOneLeft(t *testing.T) {
	importStandIn(t)
	namespace := newNamespace(t, "killed")
	startServer(t, namespace)
	pod := toolPod(t, "conns", "pod/server", "--namespace="+namespace, "--watch", "--image="+standInImage)
	pod.Spec.ActiveDeadlineSeconds = new(int64(1))
	runToEnd(t, pod)
	if got := standIn(t, "conns", "pod/server", "--namespace="+namespace); got.code != 0 {
		t.Errorf("got %+v", got)
	}
}

// Each right that a verb's pod has is needed: without it, the answer lacks something.
func TestKubectlDetourAsksForNoRightTooMany(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "rights", restricted)
	for _, pod := range []string{"web", "swallowing", "unrecorded"} {
		startMeshed(t, namespace, pod)
	}
	shell(t, "find /run/detour/attachments -name '"+lastAdd(t, namespace, "unrecorded").ContainerID+"*' -delete") // as of a pod that detour never saw
	node := "node/" + nodeOf(t, namespace, "web")
	for _, tt := range []struct {
		args string
		want []string // in the answer
		only string   // if not empty, the right that is tried
	}{
		{"trace pod/web --out --to 203.0.113.7:80", []string{"redirected to the proxy's outbound listener 15001"}, ""},
		{"trace " + node + " --out --to 203.0.113.7:80", []string{"POSTROUTING"}, ""},
		{"trace pod/web --live --out --to 203.0.113.7:80 --uid 1500 --gid 1500", []string{"* PROXY_OUTPUT 2: -m owner --uid-owner 1500"}, ""},
		{"trace " + node + " --live --out --to 203.0.113.7:80 --uid 1500 --gid 1500", []string{"=> accepted"}, ""},
		{"probe pod/web --from-node", []string{"outbound  works", "inbound   works"}, ""},
		{"verify pod/web", []string{" fine\n"}, "not /var/log/pods"},
		{"verify pod/unrecorded", []string{"not-called: "}, "/var/log/pods"},
		{"conns pod/swallowing -o json", []string{`"way": "swallowed"`, `"name": "workload"`, "annotation openservicemesh.io/"}, "not /var/log/pods"},
		{"conns pod/unrecorded -o json", []string{`"netns": "/proc/`}, "/var/log/pods"},
	} {
		pod := toolPod(t, append(strings.Fields(tt.args), "--namespace="+namespace)...)
		lesser := lesserPods(pod)
		lesser[""] = pod
		for right, pod := range lesser {
			if right != "" && tt.only != "" && strings.HasPrefix(tt.only, "not ") == strings.HasSuffix(tt.only, right) {
				continue
			}
			answer := runToEnd(t, pod)
			kubectl(t, "delete", "pod", "--namespace", pod.Namespace, pod.Name, "--now")
			lacks := slices.ContainsFunc(tt.want, func(want string) bool { return !strings.Contains(answer, want) })
			if lacks != (right != "") {
				t.Errorf("%s without %q answers %s", tt.args, right, answer)
			}
		}
	}
}

// lesserPods are the pod without each one of its rights.
func lesserPods(pod *corev1.Pod) map[string]*corev1.Pod {
	lesser := map[string]*corev1.Pod{}
	without := func(right string, change func(*corev1.Pod, *corev1.Container)) {
		p := pod.DeepCopy()
		p.Name += fmt.Sprint("-", len(lesser))
		change(p, &p.Spec.Containers[0])
		lesser[right] = p
	}
	for i, capability := range pod.Spec.Containers[0].SecurityContext.Capabilities.Add {
		without(string(capability), func(_ *corev1.Pod, c *corev1.Container) {
			c.SecurityContext.Capabilities.Add = slices.Delete(c.SecurityContext.Capabilities.Add, i, i+1)
		})
	}
	for i, mount := range pod.Spec.Containers[0].VolumeMounts {
		without(mount.MountPath, func(_ *corev1.Pod, c *corev1.Container) { c.VolumeMounts = slices.Delete(c.VolumeMounts, i, i+1) })
	}
	if pod.Spec.HostPID {
		without("the host's processes", func(p *corev1.Pod, _ *corev1.Container) { p.Spec.HostPID = false })
	}
	return lesser
}

// detourctl itself, by the agent's image: its answers, its exit codes, and its errors on standard error.
func TestKubectlDetourAnswers(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "answers", restricted)
	_, vips := startServer(t, namespace)
	startMeshed(t, namespace, "web")
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"trace pod/web --out --to svc/server", 0, "redirected to the proxy's outbound listener 15001"},
		{"trace pod/server --out --to svc/server -o json", 0, `"verdict": "accepted"`},
		{"trace node/" + nodeOf(t, namespace, "web") + " --out --to svc/server", 0, vips[0]},
		{"conns web", 1, "connections reached the proxy, none left it"},
		{"verify web", 0, " fine\n"},
		{"probe web", 0, "works"},
		{"probe server", 95, "broken"}, // which is not meshed
	} {
		got := detour(t, append(strings.Fields(tt.args), "--namespace="+namespace)...)
		if got.code != tt.code || got.err != "" || !strings.Contains(got.out, tt.want) {
			t.Errorf("%s: got %+v, want %d, %s", tt.args, got, tt.code, tt.want)
		}
	}
	shell(t, "nsenter --net="+lastAdd(t, namespace, "web").Netns+" iptables -t nat -F PROXY_REDIRECT")
	for _, of := range []string{"web", "node/" + nodeOf(t, namespace, "web")} {
		got := detour(t, "verify", of, "--namespace="+namespace)
		if got.code != 1 || !strings.Contains(got.out, "rule 1 of PROXY_REDIRECT is missing") {
			t.Errorf("verify %s: got %+v", of, got)
		}
	}
	if got := detour(t, "trace", "pod/web", "--namespace="+namespace, "--out", "--to", "nobody:80"); got.code != 2 || got.out != "" || !strings.HasPrefix(got.err, "detourctl: ") {
		t.Errorf("got %+v", got)
	}
}

// A user with the rights of plugin/detourctl/README.md and no others.
func TestKubectlDetourNeedsTheDocumentedRights(t *testing.T) {
	installDetour(t)
	importStandIn(t)
	namespace := newNamespace(t, "asker", restricted)
	startServer(t, namespace)
	apply(t, manifest(t, "asker.yaml", map[string]string{"NAMESPACE": namespace}))
	for _, kind := range []string{"clusterrole", "clusterrolebinding"} {
		deleteAtEnd(t, kind, "asker")
	}
	for _, args := range []string{
		"conns pod/server", "probe pod/server", "trace pod/server --to svc/server", "trace node/" + nodeOf(t, namespace, "server"),
	} {
		got := standIn(t, append(strings.Fields(args), "--namespace="+namespace, "--as=asker")...)
		if got.code != 0 || !strings.HasPrefix(got.out, "called: ") {
			t.Errorf("%s: got %+v", args, got)
		}
	}
}

// toolPod is the pod that kubectl detour would create.
func toolPod(t *testing.T, args ...string) *corev1.Pod {
	t.Helper()
	got := detour(t, append(args, "--dry-run")...)
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(got.out), pod); err != nil || got.code != 0 {
		t.Fatalf("%v: %+v", err, got)
	}
	return pod
}

// runToEnd creates a pod and returns its log when it has ended.
func runToEnd(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	apply(t, toJSON(t, pod))
	eventually(t, func() error {
		phase, err := tryKubectl(t, "get", "pod", "--namespace", pod.Namespace, pod.Name, "-o", "jsonpath={.status.phase}")
		if err == nil && phase != string(corev1.PodSucceeded) && phase != string(corev1.PodFailed) {
			err = fmt.Errorf("pod %s is %s", pod.Name, phase)
		}
		return err
	})
	return kubectl(t, "logs", "--namespace", pod.Namespace, pod.Name)
}
