//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// helm runs helm as the administrator on his machine does.
func helm(t *testing.T, args ...string) string {
	t.Helper()
	return mustOutput(t, helmCommand(t, args...))
}

func helmCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := kubernetes.Client(t.Context(), os.Getenv("DETOUR_E2E_HELM"), append(args, "--namespace=detour-system")...)
	for _, home := range []string{"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"} {
		cmd.Env = append(cmd.Env, home+"="+t.TempDir())
	}
	return cmd
}

const chart = "../../deploy/helm/detour"

// uninstallDetour undoes what other tests have installed.
func uninstallDetour(t *testing.T) {
	t.Helper()
	if _, err := tryKubectl(t, "get", "daemonset", "--namespace", "detour-system", "detour-agent"); err == nil {
		kubectl(t, "apply", "-k", "../../deploy/uninstall")
		rollout(t)
	}
	kubectl(t, "delete", "-k", "../../testdata/e2e/detour", "--ignore-not-found")
}

// removeDetour uninstalls detour and leaves its namespace as the chart's user makes it.
func removeDetour(t *testing.T) {
	t.Helper()
	uninstallDetour(t)
	newNamespace(t, "detour-system", "pod-security.kubernetes.io/enforce=privileged")
}

// footprint is what detour could leave: files on the node, labels and taints, the cluster's objects.
func footprint(t *testing.T) string {
	t.Helper()
	var kinds []string
	for kind := range strings.FieldsSeq(kubectl(t, "api-resources", "--verbs=list,delete", "-o", "name")) {
		// These come and go by themselves.
		if !slices.Contains([]string{"events", "events.events.k8s.io", "leases.coordination.k8s.io", "pods", "endpoints"}, kind) {
			kinds = append(kinds, kind)
		}
	}
	objects := kubectl(t, "get", strings.Join(kinds, ","), "--all-namespaces",
		"-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
	node := kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.labels} {.spec.taints}{"\n"}{end}`)
	return cniFiles(t) + shell(t, "find /run/detour -mindepth 1 2>/dev/null || :") + node + objects
}

// different says which lines are new, and which are missing.
func different(after, before string) error {
	now, then := strings.Split(after, "\n"), strings.Split(before, "\n")
	isNew := slices.DeleteFunc(slices.Clone(now), func(line string) bool { return slices.Contains(then, line) })
	missing := slices.DeleteFunc(slices.Clone(then), func(line string) bool { return slices.Contains(now, line) })
	if len(isNew)+len(missing) > 0 {
		return fmt.Errorf("there are %q, and no %q any more", isNew, missing)
	}
	return nil
}

// stay connects to a meshed pod and returns what sends a word and wants it back over the same connection.
func stay(t *testing.T, ip string, port int) (ask func()) {
	t.Helper()
	script := fmt.Sprintf(`exec bash -c 'exec 3<>/dev/tcp/%s/%d
		read -r line <&3; echo "$line"
		while read -r line; do echo "$line" >&3; read -r line <&3; echo "$line"; done'`, ip, port)
	cmd := kubernetes.Shell(t.Context(), script)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	answers := bufio.NewReader(out)
	if line, err := answers.ReadString('\n'); err != nil || !strings.HasPrefix(line, "proxy 15003") {
		t.Fatalf("the connection got %q, %v", line, err)
	}
	return func() {
		t.Helper()
		if _, err := io.WriteString(in, "still there?\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := answers.ReadString('\n'); err != nil || line != "still there?\n" {
			t.Errorf("the connection got %q, %v", line, err)
		}
	}
}

// programmed is what would be others if a pod were programmed again: its record's time and its rules' handles.
func programmed(t *testing.T, namespace, pod string) string {
	t.Helper()
	add := lastAdd(t, namespace, pod)
	return shell(t, "stat --format '%n %i %.9Y' /run/detour/attachments/*/"+add.ContainerID+"*") +
		shell(t, "nsenter --net="+add.Netns+" nft --handle list ruleset | sed 's/packets.*bytes [0-9]*//'")
}

// The chart is installed, upgraded (now with the webhook) and rolled back below a pod that runs, and uninstalled without a
// trace.
func TestHelm(t *testing.T) {
	importDetour(t, detourImage, folder("BIN"))
	osm.configure(t)
	removeDetour(t)
	namespace := newNamespace(t, "by-helm", restricted)
	for _, each := range []string{namespace, "detour-system"} {
		kubectl(t, "wait", "--namespace", each, "--for=create", "configmap/kube-root-ca.crt", "--timeout="+atMost.String())
	}
	before := footprint(t)

	helm(t, "install", "detour", chart, "--wait", "--timeout="+atMost.String(),
		"--set=mesh=osm,readyNode=true,netConf.logFile=/var/log/detour.log,netConf.timeout=8s")
	rollout(t)
	wantConf := func(want string) {
		t.Helper()
		if conf := shell(t, "cat "+conflist(t)); !strings.Contains(conf, want) {
			t.Errorf("the network's configuration has no %s: %s", want, conf)
		}
	}
	wantConf(`"timeout":"8s"`)
	startMeshed(t, namespace, "web")
	ask := stay(t, podIPs(t, namespace, "web")[0], 8080)
	first := programmed(t, namespace, "web")
	undisturbed := func() {
		t.Helper()
		ask()
		if now := programmed(t, namespace, "web"); now != first {
			t.Errorf("the pod was\n%s\nand is\n%s", first, now)
		}
	}

	const next = "docker.io/library/detour:next"
	importDetour(t, next, nextVersion(t))
	helm(t, "upgrade", "detour", chart, "--wait", "--timeout="+atMost.String(), "--reuse-values",
		"--set=admission=webhook,image.repository=docker.io/library/detour,image.tag=next,netConf.timeout=9s")
	rollout(t)
	wantConf(`"timeout":"9s"`)
	if got := shell(t, "tail -c 4 /opt/cni/bin/detour"); got != "next" {
		t.Errorf("the plugin's binary ends with %q: it is not the new one", got)
	}
	undisturbed()
	startMeshed(t, namespace, "upgraded")

	failed := helmCommand(t, "upgrade", "detour", chart, "--wait", "--timeout=20s", "--reuse-values",
		"--set=image.tag=missing,netConf.timeout=7s")
	if out, err := output(failed); err == nil {
		t.Errorf("an upgrade to an image that is missing works: %s", out)
	}
	undisturbed()
	helm(t, "rollback", "detour", "--wait", "--timeout="+atMost.String())
	rollout(t)
	wantConf(`"timeout":"9s"`)
	undisturbed()
	startMeshed(t, namespace, "rolled-back")

	kubectl(t, "delete", "pod", "--namespace", namespace, "web", "upgraded", "rolled-back", "--now")
	if out := helm(t, "uninstall", "detour", "--wait", "--timeout="+atMost.String()); !strings.Contains(out, "uninstalled") {
		t.Errorf("helm says %s", out)
	}
	if got := plugins(t); slices.Contains(got, "detour") {
		t.Errorf("the chain is %v", got)
	}
	eventually(t, func() error {
		return different(footprint(t), before)
	})
	startServer(t, newNamespace(t, "after-helm", restricted, "detour.io/remove-init=enabled"))
}
