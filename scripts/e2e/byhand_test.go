//go:build e2e

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// conflist is the node's network configuration.
const conflist = "/etc/cni/net.d/10-bridge.conflist"

var byHand sync.Once

// installByHand does what README's "Install by hand" says, and gives the cluster the MeshConfig of an Open Service Mesh.
func installByHand(t *testing.T) {
	t.Helper()
	byHand.Do(func() {
		kubectl(t, "apply", "-f", "../../testdata/api/meshconfig-crd.yaml", "-f", "../../deploy/rbac.yaml")
		kubectl(t, "wait", "--for=condition=Established", "crd/meshconfigs.config.openservicemesh.io")
		apply(t, manifest(t, "mesh.yaml", nil))

		binary, err := os.ReadFile(filepath.Join(folder("BIN"), "detour"))
		if err != nil {
			t.Fatal(err)
		}
		writeOnNode(t, "/opt/cni/bin/detour", "755", binary)
		writeOnNode(t, "/etc/cni/net.d/detour-kubeconfig", "600", []byte(kubeconfig(t)))
		appendToConflist(t, map[string]any{
			"type":              "detour",
			"mesh":              "osm",
			"kubeconfig":        "/etc/cni/net.d/detour-kubeconfig",
			"excludeNamespaces": []string{"kube-system", "osm-system", bare},
			"logFile":           "/var/log/detour.log",
		})
	})
}

// kubeconfig is one with a token of detour's ServiceAccount, for the API server where it itself says that it is.
func kubeconfig(t *testing.T) string {
	t.Helper()
	const address = "jsonpath={.items[0].endpoints[0].addresses[0]}:{.items[0].ports[0].port}"
	ca := kubectl(t, "get", "configmap", "kube-root-ca.crt", "--namespace", "default", "-o", `jsonpath={.data.ca\.crt}`)
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://%s", certificate-authority-data: "%s"}}]
users: [{name: detour, user: {token: "%s"}}]
contexts: [{name: detour, context: {cluster: here, user: detour}}]
current-context: detour
`,
		kubectl(t, "get", "endpointslices", "--namespace", "default", "--selector=kubernetes.io/service-name=kubernetes", "-o", address),
		base64.StdEncoding.EncodeToString([]byte(ca)),
		strings.TrimSpace(kubectl(t, "create", "token", "detour", "--namespace", "detour-system", "--duration=1h")))
}

func appendToConflist(t *testing.T, entry map[string]any) {
	t.Helper()
	var list map[string]any
	if err := json.Unmarshal([]byte(shell(t, "cat "+conflist)), &list); err != nil {
		t.Fatal(err)
	}
	list["plugins"] = append(list["plugins"].([]any), entry)
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	writeOnNode(t, conflist, "644", text)
}
