// Package conformance holds detour against what the meshes themselves ship. The mesh's own injector makes a pod of each
// case; detour's ADD then programs one fresh network namespace, and the mesh's own program another one that has the same
// addresses: istio's CNI plugin, or the command of the init container that the OSM family injects. Both must hold the same
// afterwards. istio's validation container runs in detour's namespace as well.
//
// The programs are those that the meshes release, in the folder CONFORMANCE_BIN:
//
//	detour             this repository's plugin, which scripts/conformance.sh builds
//	osm-injector       Open Service Mesh 1.x, a Go module: scripts/conformance.sh builds it if it isn't there
//	osm-edge-injector  osm-edge (its image has it as osm-injector)
//	fsm-injector       FSM 1.5
//	istioctl           istio, checked with 1.31; the other two must be of the same version
//	istio-cni          in istio's image install-cni
//	pilot-agent        in istio's image proxyv2
//
// The cases of a mesh whose programs are missing are skipped, and fail if CONFORMANCE_REQUIRE names the mesh.
package conformance
