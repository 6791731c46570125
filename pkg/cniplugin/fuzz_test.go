package cniplugin

import (
	"bytes"
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
)

func FuzzPrevResult(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/8"},{"address":"fd00::1/64"}]}`, `{"ips":[{"version":"4","address":"10.0.0.1/8"}]}`,
		`{"cniVersion":"0.2.0"}`, `{"ips":[null]}`, `{"ips":[{"address":"::ffff:10.0.0.1/128"}]}`, `{"ips":[{"address":"10.0.0.1"}]}`, `{}`, `[]`, `{`,
	} {
		for _, v := range Versions().SupportedVersions() {
			f.Add(v, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, version string, data []byte) {
		if !bytes.HasPrefix(data, []byte("{")) {
			t.Skip("netconf takes objects only")
		}
		result, addresses, err := parsePrevResult(netconf.Conf{CNIVersion: version, PrevResult: data})
		var cniErr *types.Error
		if err != nil && (!errors.As(err, &cniErr) || cniErr.Code != types.ErrDecodingFailure) {
			t.Errorf("%v is no CNI error with code 6", err)
		}
		if err == nil && result == nil {
			t.Error("there is no result")
		}
		for _, a := range addresses {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("address %s", a)
			}
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
