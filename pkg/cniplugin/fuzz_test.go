package cniplugin

import (
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
)

func FuzzNetConf(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","name":"net","type":"detour","mesh":"osm","kubeconfig":"/etc/kubeconfig"}`,
		`{"mesh":"osm","manifests":"m","meshConfig":{"namespace":"a","name":"b"},"excludeNamespaces":[],"timeout":"1s","onError":"allow","logLevel":"debug"}`,
		`{"mesh":"osm","manifests":"m","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/8"}]}}`,
		`{"mesh":1}`, `{"timeout":"-1s"}`, `{"meshConfig":{"name":"../x"}}`, `{"unknown":null}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := netconf.Parse(data)
		if conf.Timeout <= 0 {
			t.Errorf("timeout %s: DEL could not work", conf.Timeout)
		}
		var cniErr *types.Error
		if err != nil && (!errors.As(err, &cniErr) || cniErr.Code != types.ErrInvalidNetworkConfig) {
			t.Errorf("%v is no CNI error with code 7", err)
		}
		if err == nil && (conf.Dialect.Name == "" || conf.StateDir == "" || (conf.Kubeconfig == "" && conf.AgentSocket == "") == (conf.Manifests == "")) {
			t.Errorf("accepted %+v", conf)
		}
	})
}

func FuzzArgs(f *testing.F) {
	for _, seed := range []string{
		"", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c",
		"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../../secrets", "K8S_POD_NAMESPACE=;K8S_POD_NAME=x", "IgnoreUnknown=maybe", ";", "=", "A=B", "K8S_POD_NAME=%2e%2e",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, args string) {
		id, err := parseArgs(args)
		var cniErr *types.Error
		if err != nil && (!errors.As(err, &cniErr) || cniErr.Code != types.ErrInvalidEnvironmentVariables) {
			t.Errorf("%v is no CNI error with code 4", err)
		}
		if err == nil && id.Namespace+id.Name != "" && (!mesh.IsName(id.Namespace) || !mesh.IsName(id.Name)) {
			t.Errorf("accepted %+v", id)
		}
	})
}
