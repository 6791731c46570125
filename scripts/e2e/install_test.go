//go:build e2e

package e2e

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

// detourImage is the one that deploy/ names.
const detourImage = "docker.io/library/detour:dev"

var once sync.Once

// installDetour does what a user does: the image on the node, deploy/ applied. It gives the cluster the MeshConfig of an
// Open Service Mesh, too.
func installDetour(t *testing.T) {
	t.Helper()
	once.Do(func() {
		importDetour(t, detourImage)
		kubectl(t, "apply", "-f", "../../testdata/api/meshconfig-crd.yaml")
		kubectl(t, "wait", "--for=condition=Established", "crd/meshconfigs.config.openservicemesh.io")
		apply(t, manifest(t, "mesh.yaml", nil))
		kubectl(t, "apply", "-k", "../../testdata/e2e/detour")
		kubectl(t, "rollout", "status", "daemonset/detour-agent", "--namespace", "detour-system", "--timeout=60s")
	})
}

func importDetour(t *testing.T, name string) {
	t.Helper()
	must(t, image.Import(kubernetes.Shell(t.Context(), image.ImportScript), image.Image{
		Name: name,
		Files: []image.File{
			{Path: "/detour", From: filepath.Join(folder("BIN"), "detour")},
			{Path: "/detour-agent", From: filepath.Join(folder("BIN"), "detour-agent")},
		},
		Entrypoint: []string{"/detour-agent"},
	}))
}
