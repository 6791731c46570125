//go:build e2e

package e2e

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

// detourImage is the one that deploy/ names.
const detourImage = "ghcr.io/detour-cni/detour:v0.1.0"

// detourPrograms are those in it.
var detourPrograms = []string{"detour", "detour-agent", "detour-webhook", "detourctl"}

var (
	once      sync.Once
	untouched string // what cniFiles said before
)

// cniFiles lists the node's network configurations and plugins with their checksums.
func cniFiles(t *testing.T) string {
	t.Helper()
	return shell(t, "find /etc/cni /opt/cni -type f -exec sha256sum {} + | sort -k 2")
}

// installDetour does what a user of Open Service Mesh does: the image on the node, deploy/ applied.
func installDetour(t *testing.T) {
	t.Helper()
	once.Do(func() {
		untouched = cniFiles(t)
		importDetour(t, detourImage, folder("BIN"))
		osm.install(t)
	})
}

// importDetour puts detour's image on the first node.
func importDetour(t *testing.T, name, from string) {
	t.Helper()
	must(t, image.Import(kubernetes.Shell(t.Context(), image.ImportScript), imageOf(name, from)))
}

// imageOf is an image of detour's programs in a folder.
func imageOf(name, from string) image.Image {
	i := image.Image{Name: name, Entrypoint: []string{"/detour-agent"}}
	for _, program := range detourPrograms {
		i.Files = append(i.Files, image.File{Path: "/" + program, From: filepath.Join(from, program)})
	}
	return i
}
