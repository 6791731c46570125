//go:build kubeapi

package apitest

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/agentapi"
)

const otherUID = "00000000-0000-4000-8000-000000000000"

func TestAddFailsAndLeavesThePodAloneIf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*scene)
		code   uint
		words  []string
	}{
		{
			"the pod was replaced under its name",
			func(s *scene) { s.args = s.argsFor(s.name, otherUID) },
			agentapi.CodeRefused, []string{"the runtime starts UID " + otherUID, "the pod was replaced"},
		},
		{
			"the pod does not exist",
			func(s *scene) { s.args = s.argsFor("gone", otherUID) },
			types.ErrInternal, []string{"get pods shop-", "/gone: 404 Not Found", `pods "gone" not found`},
		},
		{
			"the ServiceAccount may do nothing",
			func(s *scene) { s.token = s.newAccount() },
			types.ErrInternal, []string{"403 Forbidden", "cannot get resource", "deploy/rbac.yaml"},
		},
		{
			"the token's signature is wrong",
			func(s *scene) { s.token = forged(detourToken) },
			types.ErrInternal, []string{"401 Unauthorized", "the credential in /", "is not accepted"},
		},
		{
			"the API server's certificate is another CA's",
			func(s *scene) { s.distrust() },
			types.ErrInternal, []string{"no trusted connection", "certificate"},
		},
		{
			"no API server is there",
			func(s *scene) { s.closeAPI(); s.conf["timeout"] = "300ms" },
			types.ErrTryAgainLater, []string{"no answer from https://127.0.0.1:", "connection refused"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			serveMeshConfigs(t)
			s := newScene(t, "osm/guide")
			tt.change(s)
			s.wantCode("ADD", tt.code, tt.words...)
			s.wantUntouched()
			if left, _ := filepath.Glob(filepath.Join(s.dir, "state/attachments/*/*")); left != nil {
				t.Errorf("attachment state %q", left)
			}
		})
	}
}

// The retries are for servers that may get well: what is refused once is refused for good, and a pod must not wait for it.
func TestAddAsksOnlyOnceWhenItIsForbidden(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/guide")
	s.token = s.newAccount()
	s.wantCode("ADD", types.ErrInternal, "403 Forbidden")
	seen := map[string]int{}
	for _, r := range kubernetes.requests(t, s.namespace, s.mesh) {
		if seen[r]++; seen[r] > 1 {
			t.Errorf("asked more than once: %s", r)
		}
	}
	if len(seen) == 0 {
		t.Error("asked nothing")
	}
}

// forged returns the token with another signature.
func forged(token string) string {
	const at = 20 // from the end: all bits of the last character need not count
	i := len(token) - at
	other := byte('A')
	if token[i] == other {
		other = 'B'
	}
	return token[:i] + string(other) + token[i+1:]
}

// closeAPI gives the net conf a kubeconfig of a server that is not there.
func (s *scene) closeAPI() {
	s.t.Helper()
	port, err := freePort()
	if err != nil {
		s.t.Fatal(err)
	}
	s.useServer(fmt.Sprintf("https://127.0.0.1:%d", port), kubernetes.file("ca.crt"))
}

// distrust gives the net conf a kubeconfig with a CA that did not sign the server's certificate.
func (s *scene) distrust() {
	s.t.Helper()
	if err := writeKeys(s.dir); err != nil {
		s.t.Fatal(err)
	}
	s.useServer(kubernetes.server, filepath.Join(s.dir, "ca.crt"))
}
