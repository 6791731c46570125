//go:build kubeapi

package apitest

import (
	"net/http"
	"slices"
	"sync"
	"testing"
)

const crdPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/meshconfigs.config.openservicemesh.io"

// podsOf and meshConfigsOf are the paths under which a namespace's objects are; ServiceAccounts' rights have no version.
func podsOf(namespace string) string        { return "/api/v1/namespaces/" + namespace + "/pods" }
func meshConfigsOf(namespace string) string { return meshConfigsAs("v1alpha2", namespace) }

func meshConfigsAs(version, namespace string) string {
	return "/apis/config.openservicemesh.io/" + version + "/namespaces/" + namespace + "/meshconfigs"
}

// serve makes the API server serve these versions of the MeshConfig and no other; without any, it doesn't know the
// resource.
func (c *cluster) serve(versions ...string) error {
	if err := c.changeCRD(versions); err != nil {
		return err
	}
	for _, version := range []string{"v1alpha1", "v1alpha2"} {
		want := http.StatusNotFound
		if slices.Contains(versions, version) {
			want = http.StatusOK
		}
		if err := c.admin.waitFor(meshConfigsAs(version, "any"), want); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) changeCRD(versions []string) error {
	if len(versions) == 0 {
		if _, err := c.admin.expect(http.MethodDelete, crdPath, nil, http.StatusOK, http.StatusNotFound); err != nil {
			return err
		}
		return c.admin.waitFor(crdPath, http.StatusNotFound)
	}
	objects, err := readManifest("../../testdata/api/meshconfig-crd.yaml")
	if err != nil {
		return err
	}
	for _, v := range objects[0].Object["spec"].(map[string]any)["versions"].([]any) {
		version := v.(map[string]any)
		version["served"] = slices.Contains(versions, version["name"].(string))
	}
	_, err = c.admin.apply(objects[0])
	return err
}

var serveAll = sync.OnceValue(func() error { return kubernetes.serve("v1alpha1", "v1alpha2") })

// serveMeshConfigs is called by every test that wants the CRD as the mesh installs it, after t.Parallel: parallel tests run
// when the others, which change the CRD, have ended.
func serveMeshConfigs(t *testing.T) {
	t.Helper()
	if err := serveAll(); err != nil {
		t.Fatal(err)
	}
}

// Not parallel, as what is served is the same for all tests. The order is that of a mesh which is installed and upgraded.
func TestAddTakesTheMeshConfigInTheNewestVersionThatIsServed(t *testing.T) {
	tests := []struct {
		name     string
		served   []string
		scenario string
		asked    []string
		warning  string
	}{
		{
			"no version is served", nil,
			"osm/defaults-no-meshconfig", []string{"v1alpha2", "v1alpha1"},
			"the API server serves no meshconfigs.config.openservicemesh.io in v1alpha2 or v1alpha1: the mesh's defaults hold",
		},
		{
			"only v1alpha1 is served", []string{"v1alpha1"},
			"osm/meshconfig-v1alpha1", []string{"v1alpha2", "v1alpha1"}, "",
		},
		{
			"v1alpha1 and v1alpha2 are served", []string{"v1alpha1", "v1alpha2"},
			"osm/meshconfig-v1alpha1", []string{"v1alpha2"}, "",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := kubernetes.serve(tt.served...); err != nil {
				t.Fatal(err)
			}
			s := newScene(t, tt.scenario)
			s.wantAdded()
			s.wantRulesAndPackets()
			s.wantRequests(tt.asked...)
			s.wantLogged("programmed", tt.warning)
		})
	}
}
