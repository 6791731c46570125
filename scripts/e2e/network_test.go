//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/cluster"
	"github.com/detour-cni/detour/scripts/e2e/image"
)

// backends are testdata/e2e's configurations of detour, by the backend that they choose.
var backends = []struct{ name, kustomization string }{{"iptables-nft", "detour"}, {"nftables", "nftables"}}

// wantMeshedPods wants that on nodes that flannel connects, with kube-proxy in nftables mode, meshed pods reach services and are
// reached by them, through their proxy or directly as the mesh says.
func (p nodePath) wantMeshedPods() {
	p.t.Helper()
	for _, n := range []*cluster.Node{p.near, p.far} {
		must(p.t, image.Import(n.Shell(p.t.Context(), image.ImportScript), imageOf(detourImage, folder("BIN"))))
		must(p.t, n.SetProxyMode(p.t.Context(), "nftables"))
	}
	namespace := newNamespace(p.t, "flannel", restricted)
	for _, backend := range backends {
		p.t.Run(backend.name, func(t *testing.T) {
			p := p.in(t)
			kubectl(t, "apply", "-k", "../../testdata/e2e/"+backend.kustomization)
			rollout(t)
			p.wantProxied(namespace, backend.name+"-proxied")
			p.wantDirect(namespace, backend.name+"-direct")
			p.wantTables(namespace, backend.name)
		})
	}
	kubectl(p.t, "apply", "-k", "../../testdata/e2e/detour")
	rollout(p.t)
	kubectl(p.t, "delete", "pods", "--namespace", namespace, "--all", "--now")
	eventually(p.t, func() error {
		if left := p.on(p.near, `grep -rl '"pod":"`+namespace+`/' /run/detour/attachments || :`); left != "" {
			return fmt.Errorf("of the meshed pods there is still %s", left)
		}
		return nil
	})
}

// startOnNear starts a meshed pod on the near node that dials the server, and its service.
func (p nodePath) startOnNear(namespace, name string, annotations map[string]string) {
	p.t.Helper()
	pod := meshedPod(p.t, namespace, name, annotations, p.vip+":80", p.server+":80")
	apply(p.t, strings.Replace(pod, "\nspec:", "\nspec:\n  nodeName: "+p.near.Name(), 1))
	waitReady(p.t, namespace, name)
}

// wantProxied wants that the pod's connections go to its proxy, and so do those from the far node to its service.
func (p nodePath) wantProxied(namespace, name string) {
	p.t.Helper()
	p.startOnNear(namespace, name, nil)
	for _, addr := range []string{p.vip + ":80", p.server + ":80"} {
		wantLine(p.t, namespace, name, fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", addr))
	}
	kubectl(p.t, "expose", "pod", name, "--namespace", namespace, "--port=8080")
	vip := kubectl(p.t, "get", "service", "--namespace", namespace, name, "-o", "jsonpath={.spec.clusterIP}")
	ip := podIPs(p.t, namespace, name)[0]
	for _, to := range []string{ip, vip} {
		eventually(p.t, func() error {
			got, err := dialFrom(p.t, p.far, to, 8080)
			if want := "proxy 15003 original " + ip + ":8080"; err == nil && got != want {
				err = fmt.Errorf("%s answered %q from the far node, want %q", to, got, want)
			}
			return err
		})
	}
}

// wantDirect wants that the connections of a pod whose mesh excludes port 80 go to the server, as detourctl trace says, in the
// pod and on the node.
func (p nodePath) wantDirect(namespace, name string) {
	p.t.Helper()
	p.startOnNear(namespace, name, map[string]string{"openservicemesh.io/outbound-port-exclusion-list": "80"})
	ip := podIPs(p.t, namespace, name)[0]
	for _, addr := range []string{p.vip + ":80", p.server + ":80"} {
		wantLine(p.t, namespace, name, addr+": nginx 80")
		for _, part := range []struct{ packet, to, by string }{
			{"--pod=" + namespace + "/" + name + " --out --to=" + addr, addr, "eth0"},
			{"--node --in=cni0 --from=" + ip + " --to=" + addr, p.server + ":80", "flannel.1"},
		} {
			way := p.trace(p.near, part.packet).Ways[0]
			if way.Verdict != "accepted" || way.Packet.To != part.to || way.Packet.Interface != part.by {
				p.t.Errorf("trace %s: %+v, want that it goes to %s by %s", part.packet, way, part.to, part.by)
			}
		}
	}
}

// wantTables wants that the pods' rules are as ADD left them and by that backend, and that each namespace has only the tables of
// its own: detour's are in the pods', kube-proxy's on the node.
func (p nodePath) wantTables(namespace, backend string) {
	p.t.Helper()
	for _, pod := range []string{"-proxied", "-direct"} {
		line := strings.Fields(p.on(p.near, "/opt/detourctl verify "+namespace+"/"+backend+pod+" | tail -n 1"))
		if len(line) < 4 || line[1] != backend || !strings.HasPrefix(line[3], "fine") {
			p.t.Errorf("verify says %q, want that it is fine with %s", line, backend)
		}
	}
	tables := func(nsenter string) []string {
		return strings.Split(p.on(p.near, nsenter+" nft list tables"), "\n")
	}
	if node := tables(""); !slices.Contains(node, "table ip kube-proxy") || slices.Contains(node, "table inet detour") {
		p.t.Errorf("the node has %q", node)
	}
	netns := `$(sed -n 's|.*"netns":"\([^"]*\)".*|\1|p' $(grep -l '"` + namespace + "/" + backend + `-proxied"' /run/detour/attachments/pods/*))`
	want := map[string][]string{"iptables-nft": {"table ip nat"}, "nftables": {"table inet detour"}}[backend]
	if pod := tables("nsenter --net=" + netns); !slices.Equal(pod, want) {
		p.t.Errorf("the pod has %q, want %q", pod, want)
	}
}
