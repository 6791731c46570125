//go:build kubeapi

package apitest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// way is how the plugin learns of a pod.
type way struct {
	title  string
	agent  bool // by the agent
	known  bool // from its cache
	server bool // from the API server, if need be in place of the agent
}

var (
	direct   = way{title: "the API server", server: true}
	live     = way{title: "the agent, which asks", agent: true}
	cached   = way{title: "the agent, which knows", agent: true, known: true}
	fallback = way{title: "the agent or the API server", agent: true, known: true, server: true}
)

// faultScene is osm/guide on a node in a network namespace of its own, with the real agent, behind an API server with faults.
type faultScene struct {
	*scene
	way
	api     *faultyAPI
	home    string // of the agent: its files, and those that a kubelet gives it
	program *exec.Cmd
	logs    logBuffer
	silence silence
	stop    func() // what the fault repeats

	good  string // a token
	young string // CNI_ARGS of the pod that replaced the other
}

// guideExclusions are the ports that osm/guide excludes: two by the MeshConfig, one by the pod.
const guideExclusions = "6379,7070,8080"

func newFaultScene(t *testing.T, w way) *faultScene {
	t.Helper()
	s := &faultScene{scene: newScene(t, "osm/guide"), way: w, stop: func() {}}
	s.node = nettest.StartNamespace(t, "node")
	s.api = newFaultyAPI(t, s.node)
	s.replacePod("8080")
	if w.server {
		s.useServer(s.api.server, kubernetes.file("ca.crt"))
	}
	if w.agent {
		s.home = shortDir(t)
		s.conf["stateDir"] = filepath.Join(s.home, "state")
		s.conf["agentSocket"] = s.socket()
		s.setToken(faultToken(t))
	}
	return s
}

// shortDir is a folder whose name is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *faultScene) socket() string { return filepath.Join(s.home, "state/agent.sock") }

// replacePod deletes the pod and makes it anew under its name, with this excluded port. The runtime starts the new one.
func (s *faultScene) replacePod(port string) {
	s.t.Helper()
	path := podsOf(s.namespace) + "/" + s.name
	if _, err := kubernetes.admin.expect(http.MethodDelete, path+"?gracePeriodSeconds=0", nil, http.StatusOK); err != nil {
		s.t.Fatal(err)
	}
	o := mustParse(s.t, strings.ReplaceAll(s.scenario.Section("pod.yaml"), `"8080"`, `"`+port+`"`))
	o.SetNamespace(s.namespace)
	o.SetUID("")
	node := "another-node"
	if s.known {
		node = s.nodeName()
	}
	o.Object["spec"].(map[string]any)["nodeName"] = node
	stored := s.apply(o)
	s.args = s.argsFor(s.name, string(stored.GetUID()))
}

func (s *faultScene) nodeName() string { return "node-of-" + s.namespace }

// replaceConfig deletes the MeshConfig and makes it anew, with the excluded port 7071 for 7070.
func (s *faultScene) replaceConfig() {
	s.t.Helper()
	if _, err := kubernetes.admin.expect(http.MethodDelete, meshConfigsOf(s.mesh)+"/"+meshConfigName, nil, http.StatusOK); err != nil {
		s.t.Fatal(err)
	}
	o := mustParse(s.t, strings.ReplaceAll(s.scenario.Section("meshconfig.yaml"), "7070", "7071"))
	o.SetNamespace(s.mesh)
	s.apply(o)
}

var agentProgram = sync.OnceValues(func() (string, error) {
	path := kubernetes.file("detour-agent")
	out, err := exec.Command("go", "build", "-o", path, "../../plugin/detour-agent").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build detour-agent: %w: %s", err, out)
	}
	return path, nil
})

// agentAccount has what the agent's RBAC gives it.
var agentAccount = sync.OnceValues(func() (string, error) {
	for _, text := range []string{
		"{apiVersion: v1, kind: Namespace, metadata: {name: fault-agents}}",
		"{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: fault-agents, name: agent}}",
		"{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: fault-agents}, rules: [" +
			"{apiGroups: [''], resources: [pods], verbs: [get, list, watch]}, " +
			"{apiGroups: [config.openservicemesh.io], resources: [meshconfigs], verbs: [get, list, watch]}]}",
		"{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: fault-agents}, " +
			"roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: fault-agents}, " +
			"subjects: [{kind: ServiceAccount, namespace: fault-agents, name: agent}]}",
	} {
		o, err := parseObject([]byte(text))
		if err == nil {
			_, err = kubernetes.admin.apply(o)
		}
		if err != nil {
			return "", err
		}
	}
	token, err := kubernetes.token("fault-agents", "agent")
	if err != nil {
		return "", err
	}
	return token, kubernetes.waitUntilAllowed(token, podsOf("any")+"/any", meshConfigsOf("any")+"/"+meshConfigName)
})

func faultToken(t *testing.T) string {
	t.Helper()
	token, err := agentAccount()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// setToken gives the agent, or without one the plugin, its credential.
func (s *faultScene) setToken(token string) {
	s.t.Helper()
	s.token = token
	if !s.agent {
		s.write("token", token)
		return
	}
	folder := filepath.Join(s.home, "account")
	ca, err := os.ReadFile(kubernetes.file("ca.crt"))
	if err == nil {
		err = os.MkdirAll(folder, 0o700)
	}
	for name, data := range map[string][]byte{"token": []byte(token), "ca.crt": ca, "namespace": []byte("fault-agents")} {
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name), data, 0o600)
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// startAgent starts the real program on the node, with the files that a kubelet gives it.
func (s *faultScene) startAgent() {
	s.t.Helper()
	program, err := agentProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	conf := filepath.Join(s.home, "conf")
	if err := os.MkdirAll(conf, 0o700); err != nil {
		s.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"conf/10-pods.conflist": `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"bridge"}]}`,
		"netconf.json":          `{"mesh": "osm", "meshConfig": {"namespace": "` + s.mesh + `"}}`,
	} {
		if err := os.WriteFile(filepath.Join(s.home, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	const begin = `mount -t tmpfs tmpfs "$(readlink -f /var/run)" && cd /var/run && mkdir -p secrets/kubernetes.io/serviceaccount &&
		mount --bind "$1" secrets/kubernetes.io/serviceaccount && shift && exec "$@"`
	s.program = exec.Command("sh", "-c", begin, "sh", filepath.Join(s.home, "account"), program, "run", "--config="+filepath.Join(s.home, "netconf.json"),
		"--cni-bin-dir="+filepath.Join(s.home, "bin"), "--cni-conf-dir="+conf, "--host-cni-conf-dir="+conf, "--plugin="+detour,
		"--state-dir="+filepath.Join(s.home, "state"), "--metrics=127.0.0.1:0", "--api-fallback=false")
	s.program.Env = append(os.Environ(), "NODE_NAME="+s.nodeName(), "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT="+s.api.port())
	s.program.Stderr = &s.logs
	s.program.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := s.node.Do(s.program.Start); err != nil {
		s.t.Fatal(err)
	}
}

// stopAgent kills the agent, if it runs.
func (s *faultScene) stopAgent() {
	if s.program == nil {
		return
	}
	s.program.Process.Kill()
	s.program.Wait()
	s.program = nil
}

func (s *faultScene) signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.program.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// awaitAgent waits until the agent answers for the pod: from memory, if it is to know it.
func (s *faultScene) awaitAgent() {
	s.t.Helper()
	path := podsOf(s.namespace) + "/" + s.name
	s.eventually("the agent answers", func() bool {
		before := s.api.count(path)
		id := pod.ID{Namespace: s.namespace, Name: s.name, UID: s.args[strings.LastIndexByte(s.args, '=')+1:]}
		answer, err := agentapi.Call(s.t.Context(), s.socket(), agentapi.Request{Lookup: &id}, requestTime)
		return err == nil && answer.Error == "" && (!s.known || s.api.count(path) == before)
	})
}

func (s *faultScene) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(startTime); !ok(); time.Sleep(pollTime) {
		if time.Now().After(deadline) {
			s.t.Fatalf("it did not happen: %s\n%s", what, s.logs.String())
		}
	}
}

// dropConnections makes packets of the node's open connections to the API server vanish, and nobody hears of it.
func (s *faultScene) dropConnections() {
	s.t.Helper()
	rules := fmt.Sprintf(`table inet fault {
	set old { type inet_service; elements = { %s } }
	chain in { type filter hook input priority 0; tcp dport %[2]s tcp sport @old drop; tcp sport %[2]s tcp dport @old drop; }
}`, strings.Join(s.api.clients(), ", "), s.api.port())
	var out []byte
	err := s.node.Do(func() (err error) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// hasRules reports whether the pod has osm/guide's rules with these excluded ports, and no other.
func (s *faultScene) hasRules(excluded string) (got string, ok bool) {
	s.t.Helper()
	ok = true
	for _, p := range programs {
		want := strings.ReplaceAll(s.scenario.Section(p.section), guideExclusions, excluded)
		rules := s.rules(p.program)
		ok = ok && slices.Equal(rules, listed(strings.ReplaceAll(want, "\n:", "\n-N ")))
		got += strings.Join(rules, "\n") + "\n"
	}
	return got, ok
}

// expiredToken is the token as it would be a day later.
func expiredToken(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims map[string]any
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	if err != nil || decoder.Decode(&claims) != nil {
		t.Fatalf("a token of another form: %v", err)
	}
	for _, claim := range []string{"iat", "nbf", "exp"} {
		at, err := claims[claim].(json.Number).Int64()
		if err != nil {
			t.Fatal(err)
		}
		claims[claim] = at - int64((24 * time.Hour).Seconds())
	}
	data, err := os.ReadFile(kubernetes.file("serviceaccount.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	body := parts[0] + "." + base64.RawURLEncoding.EncodeToString(mustJSON(t, claims))
	hash := sha256.Sum256([]byte(body))
	r, v, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return body + "." + base64.RawURLEncoding.EncodeToString(signature)
}
