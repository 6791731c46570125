package netconf

import "testing"

func BenchmarkParse(b *testing.B) {
	conf := []byte(`{"cniVersion":"1.1.0","name":"net","type":"detour","mesh":"osm","agentSocket":"/run/detour/agent.sock","kubeconfig":"/etc/cni/net.d/detour-kubeconfig",
		"excludeNamespaces":["kube-system","osm-system"],"logFile":"/var/log/detour.log","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/8"}]}}`)
	for b.Loop() {
		if _, err := Parse(conf); err != nil {
			b.Fatal(err)
		}
	}
}
