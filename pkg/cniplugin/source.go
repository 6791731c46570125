package cniplugin

import (
	"context"

	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
)

// source provides pods and their mesh's configuration.
type source interface {
	Lookup(context.Context, kube.Request) (kube.Objects, error)
	Ready(context.Context, mesh.ConfigRef) error
}

func (c *call) openSource() (source, error) {
	switch {
	case c.conf.Manifests != "":
		return kube.NewManifests(c.conf.Manifests)
	case c.conf.AgentSocket != "":
		return kube.NewAgent(c.conf.AgentSocket, c.conf.Kubeconfig), nil
	}
	return kube.NewAPI(c.conf.Kubeconfig)
}
