package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/mesh"
)

func uninstallNodesCommand() *cobra.Command {
	n := agent.Nodes{Pause: time.Second}
	var daemonSet, patch string
	c := &cobra.Command{
		Use:   "uninstall-nodes",
		Short: "Have the DaemonSet uninstall detour from all nodes, and wait until they start pods without it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if n.Namespace, n.Name, err = splitName(daemonSet); err != nil {
				return err
			}
			if n.Patch, err = readPatch(patch); err != nil {
				return err
			}
			n.Log = slog.New(slog.NewJSONHandler(c.ErrOrStderr(), nil))
			return n.Uninstall(c.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&daemonSet, "daemonset", "detour-system/detour-agent", "NAMESPACE/NAME of the agents' DaemonSet")
	f.StringVar(&patch, "patch", "/etc/detour/patch.yaml", "the JSON patch, as YAML, that turns the agents into their own removal")
	f.DurationVar(&n.Timeout, "timeout", 4*time.Minute, "how long to wait for the nodes")
	f.StringVar(&n.Kubeconfig, "kubeconfig", "", "how to reach the API server; by default with the pod's ServiceAccount")
	f.StringArrayVar(&n.DeleteFirst, "delete-first", nil, "path at the API server of an object to delete first; may be repeated")
	return c
}

func splitName(daemonSet string) (namespace, name string, _ error) {
	namespace, name, _ = strings.Cut(daemonSet, "/")
	if !mesh.IsName(namespace) || !mesh.IsName(name) {
		return "", "", fmt.Errorf("--daemonset: %q is not NAMESPACE/NAME", daemonSet)
	}
	return namespace, name, nil
}

func readPatch(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--patch: %w", err)
	}
	var operations []map[string]any
	if err := yaml.Unmarshal(text, &operations); err != nil || len(operations) == 0 {
		return nil, fmt.Errorf("--patch: %s is not a JSON patch, which is a list of operations", path)
	}
	return yaml.YAMLToJSON(text)
}
