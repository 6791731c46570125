package cniplugin_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// noAPIServer has the pod looked up where nobody answers.
func noAPIServer(a *attachment) {
	delete(a.conf, "manifests")
	a.conf["kubeconfig"], a.conf["timeout"] = a.path("kubeconfig"), "300ms"
	a.file("kubeconfig", kubeconfig("https://127.0.0.1:1", nil, "token: x"))
}

// noIPTables has every iptables fail.
func noIPTables(a *attachment) {
	a.conf["backend"] = "iptables"
	a.env["PATH"] = failingRestore(a.t) + ":" + os.Getenv("PATH")
}

func TestOnErrorAllowStartsThePodUnmeshedAndSaysSo(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(a *attachment)
		why   string
	}{
		"the API server does not answer": {noAPIServer, "127.0.0.1:1"},
		"the kernel refuses":             {noIPTables, "no such target"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["onError"] = "allow"
			c.spoil(a)
			a.must("ADD")
			a.same("ADD", a.nothing())
			line := a.logged()[0]
			if line["level"] != "ERROR" || line["outcome"] != "allowed" || !strings.Contains(fmt.Sprint(line["msg"]), "UNMESHED") || !strings.Contains(fmt.Sprint(line["reason"]), c.why) {
				t.Errorf("logged %v", line)
			}
			if r := a.record(); r["outcome"] != "allowed" || !strings.Contains(fmt.Sprint(r["reason"]), c.why) {
				t.Errorf("the record is %v", r)
			}
			a.must("CHECK")
			a.must("DEL")
			a.empty()
		})
	}
}

// record is the attachment's state as it is written.
func (a *attachment) record() map[string]any {
	a.t.Helper()
	data, err := os.ReadFile(a.path(a.recordName()))
	if err != nil {
		a.t.Fatal(err)
	}
	var r map[string]any
	if err := json.Unmarshal(data, &r); err != nil {
		a.t.Fatal(err)
	}
	return r
}

func (a *attachment) recordName() string {
	return fmt.Sprintf("state/attachments/%s/%s@%s.json", a.conf["name"], a.env["CNI_CONTAINERID"], a.env["CNI_IFNAME"])
}

// Whoever may annotate a pod must not get it past the mesh by a mistake: what is refused stays refused.
func TestOnErrorAllowDoesNotCoverWhatIsThePodsFault(t *testing.T) {
	for name, c := range map[string]struct{ pod, want string }{
		"a malformed annotation":                {meshedPod(`inbound-port-exclusion-list: "x"`), "a port is 1 to 65535"},
		"an annotation that is neither":         {strings.Replace(meshedPod(), "uid: uid-1", `uid: uid-1, annotations: {detour.io/redirect-after-proxy-start: "maybe"}`, 1), "neither true nor false"},
		"an application that runs as the proxy": {strings.Replace(meshedPod(), "name: app", "name: app, securityContext: {runAsUser: 1500}", 1), "runs as UID 1500"},
		"another pod of the same name":          {strings.Replace(meshedPod(), "uid-1", "uid-2", 1), "the pod was replaced meanwhile"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, c.pod, meshConfig)
			a.conf["onError"] = "allow"
			a.fails("ADD", 100, c.want)
			a.untouched()
			a.must("DEL")
			a.empty()
		})
	}
}

func TestAPodThatWasAllowedToStartIsProgrammedByTheNextAdd(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["onError"], a.conf["backend"] = "allow", "iptables"
	path := os.Getenv("PATH")
	noIPTables(a)
	a.must("ADD")
	a.env["PATH"] = path
	a.must("ADD")
	a.must("CHECK")
	if r := a.record(); r["outcome"] != "programmed" {
		t.Errorf("the record is %v", r)
	}
	a.must("DEL")
	a.empty()
}

// An ADD that is repeated while the API server is down leaves the pod in the mesh.
func TestOnErrorAllowKeepsWhatAnEarlierAddProgrammed(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["onError"] = "allow"
	a.must("ADD")
	want := a.holds()
	noAPIServer(a)
	a.must("ADD")
	a.same("the second ADD", want)
	if line := a.logged()[1]; line["level"] != "ERROR" || line["outcome"] != "programmed" || strings.Contains(fmt.Sprint(line["msg"]), "UNMESHED") {
		t.Errorf("logged %v", line)
	}
	a.must("CHECK")
	a.must("DEL")
	a.empty()
}

// The node agent programs such a pod and writes its record last: killed before that, it leaves rules that no record tells of.
func TestDelOfAPodThatWasAllowedToStartLooksWhatIsThere(t *testing.T) {
	t.Parallel()
	a := newIstio(t, tproxy)
	a.must("ADD")
	r := a.record()
	for _, field := range []string{"rules", "families", "backend", "setup"} {
		delete(r, field)
	}
	r["outcome"] = "allowed"
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	a.file(a.recordName(), string(data))
	a.must("DEL")
	a.empty()
}

// Without a net conf that says so, and without a result to pass on, no pod can be allowed to start.
func TestOnErrorAllowNeedsANetConfAndAPrevResult(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(a *attachment)
		code  uint
	}{
		"an invalid net conf":                   {func(a *attachment) { a.conf["backend"] = "ebpf" }, 7},
		"no prevResult":                         {func(a *attachment) { delete(a.conf, "prevResult") }, 7},
		"prevResult is null":                    {func(a *attachment) { a.conf["prevResult"] = nil }, 7},
		"a prevResult that is not an object":    {func(a *attachment) { a.conf["prevResult"] = "x" }, 7},
		"a prevResult of an unknown version":    {func(a *attachment) { a.conf["prevResult"] = map[string]any{"cniVersion": "7"} }, 6},
		"a prevResult with a malformed address": {func(a *attachment) { a.conf["prevResult"] = prevResult("10.0.0") }, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["onError"] = "allow"
			c.spoil(a)
			a.fails("ADD", c.code)
			a.untouched()
			if line := a.logged()[0]; line["event"] != "add-failed" || line["code"] != float64(c.code) {
				t.Errorf("logged %v", line)
			}
			a.must("DEL")
		})
	}
}

func TestOnErrorAllowCoversMalformedArguments(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["onError"], a.env["CNI_ARGS"] = "allow", "x"
	a.must("ADD")
	if line := a.logged()[0]; line["event"] != "add-allowed" || line["code"] != 4.0 {
		t.Errorf("logged %v", line)
	}
	a.must("DEL")
	a.empty()
}
