//go:build e2e

package e2e

import (
	"os"
	"strings"
	"testing"
)

// mesh is one whose injector the tests stand in for. own turns what is written for Open Service Mesh into the mesh's own.
type mesh struct {
	detour        string // the kustomization
	init, sidecar string
	own           *strings.Replacer
}

var (
	osm = mesh{detour: "detour", init: "osm-init", sidecar: "envoy", own: strings.NewReplacer()}
	fsm = mesh{detour: "fsm", init: "fsm-init", sidecar: "sidecar", own: strings.NewReplacer(
		"openservicemesh.io", "flomesh.io", "v1alpha2", "v1alpha3", "osm-system", "fsm-system", "osm-mesh-config", "fsm-mesh-config",
		osm.init, "fsm-init", osm.sidecar, "sidecar",
	)}
)

// install gives the cluster the mesh's configuration and detour for it.
func (m mesh) install(t *testing.T) {
	t.Helper()
	m.configure(t)
	kubectl(t, "apply", "-k", "../../testdata/e2e/"+m.detour)
	rollout(t)
	kubectl(t, "rollout", "status", "deployment/detour-webhook", "--namespace", "detour-system", "--timeout="+atMost.String())
}

// configure gives the cluster the mesh's configuration.
func (m mesh) configure(t *testing.T) {
	t.Helper()
	crd, err := os.ReadFile("../../testdata/api/meshconfig-crd.yaml")
	must(t, err)
	apply(t, m.own.Replace(string(crd)))
	kubectl(t, "wait", "--for=condition=Established", m.own.Replace("crd/meshconfigs.config.openservicemesh.io"))
	apply(t, m.own.Replace(manifest(t, "mesh.yaml", nil)))
}
