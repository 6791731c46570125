package cniplugin

import (
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/kube"
)

// status fails with code 50 if detour can't serve an ADD now. Running pods are never affected, so there is no code 51.
func status(c *call) error {
	if err := c.ready(); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "detour can't serve an ADD: "+err.Error(), "")
	}
	return nil
}

func (c *call) ready() error {
	ctx, cancel := c.deadline()
	defer cancel()
	if err := backend.Works(ctx, c.conf.Backend); err != nil {
		return err
	}
	if err := errors.Join(c.store.Prepare(c.conf.Name), c.store.Writable()); err != nil {
		return err
	}
	from, err := kube.Open(c.conf.Manifests, c.conf.AgentSocket, c.conf.Kubeconfig)
	if err != nil {
		return err
	}
	return from.Ready(ctx, c.conf.Dialect.Config)
}
