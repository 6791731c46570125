//go:build kubeapi

package apitest

import "testing"

func TestAddProgramsAMeshedPodWithTwoRequests(t *testing.T) {
	t.Parallel()
	tests := []struct{ scenario, warning string }{
		{"osm/guide", ""},
		{"osm/ports-inbound", ""},
		{"osm/ports-more-than-15", ""},
		{"osm/ranges-of-both-families", ""},
		{"osm/sidecar-native", ""}, // a field that the API server checks
	}
	for _, tt := range tests {
		t.Run(tt.scenario, func(t *testing.T) {
			t.Parallel()
			serveMeshConfigs(t)
			s := newScene(t, tt.scenario)
			s.wantAdded()
			s.wantRulesAndPackets()
			s.wantRequests("v1alpha2")
			s.wantLogged("programmed", tt.warning)
		})
	}
}

func TestAddFindsTheMeshConfigWhereTheMeshInstallsIt(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newSceneIn(t, "osm/guide", "osm-system") // and no meshConfig in the net conf
	s.wantAdded()
	s.wantRulesAndPackets()
}

func TestAddWithoutAMeshConfigMeansDefaultsAndAWarning(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/defaults-no-meshconfig")
	s.wantAdded()
	s.wantRulesAndPackets()
	s.wantRequests("v1alpha2") // the object is missing, not the version
	s.wantLogged("programmed", "MeshConfig "+s.mesh+"/osm-mesh-config does not exist: the mesh's defaults hold")
}

func TestAddLeavesAPodAloneThatIsNotMeshed(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/skip-no-sidecar")
	s.wantAdded()
	s.wantUntouched()
	s.wantLogged("skipped", "")
}

func TestAddAsksNothingAboutAnExcludedNamespace(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/guide")
	s.conf["excludeNamespaces"] = []string{s.namespace}
	s.wantAdded()
	s.wantUntouched()
	s.wantLogged("skipped", "")
	if got := kubernetes.requests(t, s.namespace, s.mesh); got != nil {
		t.Errorf("the API server was asked for %q", got)
	}
}

func TestAddAgainChangesNothing(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/guide")
	s.wantAdded()
	s.wantAdded()
	s.wantRulesAndPackets()
}
