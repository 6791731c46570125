//go:build kubeapi

package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/nettest"
)

// outcome is what a call of the plugin gave: a result, or a CNI error, whose code is 0 if there was none.
type outcome struct {
	stdout []byte
	types.Error
}

// callTime is longer than any call may take, its deadline being 10 s.
const callTime = time.Minute

// call runs the binary as a runtime does, with the API server that is there, unless the test gave the net conf another
// kubeconfig.
func (s *scene) call(verb string) outcome {
	s.t.Helper()
	if s.conf["kubeconfig"] == nil && s.conf["agentSocket"] == nil {
		s.useServer(kubernetes.server, kubernetes.file("ca.crt"))
	}
	conf, err := json.Marshal(s.conf)
	if err != nil {
		s.t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(s.t.Context(), callTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, detour)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &stdout, &stderr
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"CNI_COMMAND=" + verb,
		"CNI_CONTAINERID=" + s.containerID(),
		"CNI_NETNS=" + s.world.Pod.Path(),
		"CNI_IFNAME=" + nettest.PodLink,
		"CNI_ARGS=" + s.args,
		"CNI_PATH=" + filepath.Dir(detour),
	}
	err = s.onNode(cmd.Run)
	s.wantNoToken(stdout.String(), stderr.String(), s.log())
	if err == nil {
		return outcome{stdout: stdout.Bytes()}
	}
	var failed outcome
	if !errors.As(err, new(*exec.ExitError)) || json.Unmarshal(stdout.Bytes(), &failed.Error) != nil || failed.Code == 0 {
		s.t.Fatalf("%s: %v; stdout %q, stderr %q", verb, err, stdout.String(), stderr.String())
	}
	return failed
}

// onNode runs fn in the network namespace of the node.
func (s *scene) onNode(fn func() error) error {
	if s.node == nil {
		return fn()
	}
	return s.node.Do(fn)
}

// wantNoToken fails if a text quotes the credential.
func (s *scene) wantNoToken(texts ...string) {
	s.t.Helper()
	for _, text := range texts {
		if s.token != "" && strings.Contains(text, s.token) {
			s.t.Errorf("the token is in %q", text)
		}
	}
}

// log returns the plugin's log file, "" if there is none yet.
func (s *scene) log() string {
	s.t.Helper()
	data, err := os.ReadFile(s.logFile())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	return string(data)
}

// wantAdded runs ADD, which must succeed and pass prevResult on as it is.
func (s *scene) wantAdded() {
	s.t.Helper()
	got := s.call("ADD")
	if got.Code != 0 {
		s.t.Fatalf("ADD: code %d, %s", got.Code, got.Msg)
	}
	want, err := json.Marshal(s.conf["prevResult"])
	if err != nil {
		s.t.Fatal(err)
	}
	if !sameJSON(got.stdout, want) {
		s.t.Errorf("ADD printed %s, want prevResult as it was: %s", got.stdout, want)
	}
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// wantCode runs the verb, which must end with the code, 0 for success, and an error that has all the words.
func (s *scene) wantCode(verb string, code uint, words ...string) {
	s.t.Helper()
	got := s.call(verb)
	if got.Code != code {
		s.t.Errorf("%s: code %d, want %d: %s", verb, got.Code, code, got.Msg)
	}
	for _, word := range words {
		if !strings.Contains(got.Msg, word) {
			s.t.Errorf("%s: error %q lacks %q", verb, got.Msg, word)
		}
	}
}

// wantLogged wants one line for the ADD, with the outcome, and the warning if there is to be one.
func (s *scene) wantLogged(outcome, warning string) {
	s.t.Helper()
	var line struct {
		Verb, Pod, Outcome string
		Warnings           []string
	}
	if err := json.Unmarshal([]byte(s.log()), &line); err != nil {
		s.t.Fatalf("the log is not one line of JSON: %v: %s", err, s.log())
	}
	var want []string
	if warning != "" {
		want = []string{warning}
	}
	if line.Verb != "ADD" || line.Pod != s.namespace+"/"+s.name || line.Outcome != outcome || !slices.Equal(line.Warnings, want) {
		s.t.Errorf("logged %s, want outcome %s and warnings %q", s.log(), outcome, want)
	}
}

// wantRequests wants that the API server was asked for the pod and for the MeshConfig in the versions, once each.
func (s *scene) wantRequests(versions ...string) {
	s.t.Helper()
	want := []string{"get " + podsOf(s.namespace) + "/" + s.name}
	for _, version := range versions {
		want = append(want, "get "+meshConfigsAs(version, s.mesh)+"/"+meshConfigName)
	}
	slices.Sort(want)
	if got := kubernetes.requests(s.t, s.namespace, s.mesh); !slices.Equal(got, want) {
		s.t.Errorf("the API server was asked for %q, want %q", got, want)
	}
}
