//go:build kubeapi

package apitest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// The one API server of all tests, and the plugin. Tests keep apart by namespaces; which versions of the MeshConfig are
// served is the same for all, see serveMeshConfigs.
var (
	kubernetes  *cluster
	detour      string // path of the binary
	detourToken string // of the ServiceAccount in deploy/rbac.yaml
)

// The servers die with the thread that started them, so that nothing survives a killed test. That must be a thread that
// lives as long as the process: the main one, on which this keeps TestMain.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "detour-apitest-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	kubernetes, err = newCluster(dir)
	if err != nil {
		return fail(err)
	}
	defer kubernetes.stop()
	if err := setUp(dir); err != nil {
		return fail(err)
	}
	return nettest.Main(m)
}

func fail(err error) int {
	fmt.Fprintf(os.Stderr, "apitest: %v\n", err)
	return 1
}

// setUp builds the plugin while the API server starts, and installs what a user installs.
func setUp(dir string) error {
	if err := kubernetes.start(); err != nil {
		return err
	}
	detour = filepath.Join(dir, "detour")
	if out, err := exec.Command("go", "build", "-o", detour, "../../plugin/detour").CombinedOutput(); err != nil {
		return fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	if err := kubernetes.waitUntilReady(); err != nil {
		return err
	}
	objects, err := readManifest("../../deploy/rbac.yaml")
	if err != nil {
		return err
	}
	istio, err := parseObject([]byte("{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}")) // overlays/istio needs it
	if err != nil {
		return err
	}
	for _, o := range append(objects, istio) {
		if _, err := kubernetes.admin.apply(o); err != nil {
			return fmt.Errorf("apply deploy/rbac.yaml: %w", err)
		}
	}
	if detourToken, err = kubernetes.token("detour-system", "detour"); err != nil {
		return err
	}
	// RBAC takes effect when the authorizer has seen the objects.
	return kubernetes.waitUntilAllowed(detourToken, podsOf("any")+"/any", meshConfigsOf("any")+"/osm-mesh-config")
}
