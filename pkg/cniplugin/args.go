package cniplugin

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// parseArgs returns the pod that CNI_ARGS name, the zero ID for a container that is not Kubernetes'. Podman sets K8S_POD_NAME too,
// but no namespace. Errors are CNI errors with code 4.
func parseArgs(args string) (pod.ID, error) {
	var a struct {
		types.CommonArgs
		K8S_POD_NAMESPACE types.UnmarshallableString //nolint:revive // the name is the key
		K8S_POD_NAME      types.UnmarshallableString //nolint:revive
		K8S_POD_UID       types.UnmarshallableString //nolint:revive
		// containerd and CRI-O pass it too
		K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive
	}
	fail := func(format string, args ...any) (pod.ID, error) {
		return pod.ID{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+fmt.Sprintf(format, args...), "")
	}
	if err := types.LoadArgs(args, &a); err != nil {
		return fail("%v", err)
	}
	id := pod.ID{Namespace: string(a.K8S_POD_NAMESPACE), Name: string(a.K8S_POD_NAME), UID: string(a.K8S_POD_UID)}
	if id.Namespace == "" {
		return pod.ID{}, nil
	}
	if !mesh.IsName(id.Namespace) {
		return fail("K8S_POD_NAMESPACE %q is not a Kubernetes name", id.Namespace)
	}
	if !mesh.IsName(id.Name) {
		return fail("K8S_POD_NAME %q is not a Kubernetes name", id.Name)
	}
	return id, nil
}
