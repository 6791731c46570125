//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hostToken is what the plugin shows to the API server if the agent does not answer.
const hostToken = "/etc/cni/net.d/detour-token"

// A stale token on the host keeps no pod from starting: the agent answers, and puts the right one back.
func TestAStaleTokenIsReplaced(t *testing.T) {
	installDetour(t)
	before := shell(t, "cat "+hostToken)
	writeOnNode(t, hostToken, "600", []byte("stale"))
	startMeshed(t, newNamespace(t, "stale-token", restricted), "web")
	wantHostToken(t, before)
}

// The agent's token changes twice: with its pod, to which it is bound, and when the kubelet, which forgets tokens when it is
// restarted, asks for a new one. While the agent does not answer, a pod starts meshed with the newest and not with the first.
func TestTheTokenIsRotated(t *testing.T) {
	b := mustBreak(t)
	installDetour(t)
	old := shell(t, "cat "+hostToken)
	wantAccepted(t, old, true)
	kubectl(t, "delete", "pod", "--namespace", "detour-system", "--selector="+agentLabel)
	rollout(t)
	projected := projectedToken(t)
	second := shell(t, "cat "+projected)
	wantHostToken(t, second)
	wantAccepted(t, old, false)

	must(t, b.Restart(t.Context(), "kubelet"))
	eventually(t, func() error {
		if shell(t, "cat "+projected) == second {
			return errors.New("the kubelet has not replaced the token")
		}
		return nil
	})
	newest := shell(t, "cat "+projected)
	wantHostToken(t, newest)
	lag := modified(t, hostToken).Sub(modified(t, projected))
	t.Logf("the host had the new token %d ms after the agent", lag.Milliseconds())
	if lag > 10*time.Second { // after 30 the agent looks without being told
		t.Error("that is too late")
	}

	namespace := newNamespace(t, "rotated", restricted)
	freezeAgent(t)
	startMeshed(t, namespace, "newest")
	writeOnNode(t, hostToken, "600", []byte(old))
	apply(t, meshedPod(t, namespace, "old", nil, outsideAddr))
	eventually(t, func() error {
		add, err := findAdd(t, namespace, "old")
		if err == nil && (add.Outcome != "failed" || !strings.Contains(add.Reason, "Unauthorized")) {
			err = fmt.Errorf("with the old token the pod was %s: %s", add.Outcome, add.Reason)
		}
		return err
	})
	writeOnNode(t, hostToken, "600", []byte(newest))
	wantMeshed(t, namespace, "old")
}

// projectedToken is the file in which the kubelet keeps the agent's token.
func projectedToken(t *testing.T) string {
	t.Helper()
	uid := kubectl(t, "get", "pods", "--namespace", "detour-system", "--selector="+agentLabel, "-o", "jsonpath={.items[*].metadata.uid}")
	return "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~projected/credential/token"
}

// freezeAgent stops the agent from doing anything, until thaw is called or the test ends.
func freezeAgent(t *testing.T) (thaw func()) {
	t.Helper()
	agent := strings.TrimSpace(shell(t, "pgrep -x detour-agent"))
	shell(t, "kill -STOP "+agent)
	thaw = func() {
		_ = kubernetes.Shell(context.Background(), "kill -CONT "+agent).Run() // after a minute the kubelet has killed it
	}
	t.Cleanup(thaw)
	return thaw
}

// modified is when the file was written.
func modified(t *testing.T, path string) time.Time {
	t.Helper()
	seconds, err := strconv.ParseFloat(strings.TrimSpace(shell(t, "stat --dereference --format %.Y "+path)), 64)
	must(t, err)
	return time.UnixMicro(int64(seconds * 1e6))
}

// wantHostToken wants that the host has that token, within some time.
func wantHostToken(t *testing.T, want string) {
	t.Helper()
	eventually(t, func() error {
		if shell(t, "cat "+hostToken) != want {
			return errors.New("the token is still another")
		}
		return nil
	})
}

// wantAccepted wants that the API server takes the token, or not, within some time: it remembers for a while whom it knew.
func wantAccepted(t *testing.T, token string, want bool) {
	t.Helper()
	review := fmt.Sprintf("{apiVersion: authentication.k8s.io/v1, kind: TokenReview, spec: {token: %q}}", token)
	eventually(t, func() error {
		cmd := kubernetes.Kubectl(t.Context(), "create", "-f", "-", "-o", "jsonpath={.status.authenticated}")
		cmd.Stdin = strings.NewReader(review)
		got, err := output(cmd)
		if err == nil && (got == "true") != want {
			err = fmt.Errorf("that the API server accepts the token is %q, want %t", got, want)
		}
		return err
	})
}
