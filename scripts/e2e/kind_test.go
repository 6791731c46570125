//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
)

// kind is a cluster that scripts/e2e-kind.sh made with kind: its one node is a container.
type kind struct{ kubectl, kubeconfig, node string }

func (k kind) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, k.kubectl, append([]string{"--kubeconfig=" + k.kubeconfig}, args...)...)
}

func (k kind) Client(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.kubeconfig)
	return cmd
}

func (k kind) Shell(ctx context.Context, script string) *exec.Cmd {
	return exec.CommandContext(ctx, "docker", "exec", "--interactive", k.node, "bash", "-euc", script)
}
