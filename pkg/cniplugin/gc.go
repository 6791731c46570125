package cniplugin

import (
	"errors"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netns"
)

// gc deletes the records of this network's attachments that are no longer valid, and the locks of namespaces without records.
func gc(c *call) error {
	keys, err := c.store.Keys(c.conf.Name)
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range keys {
		if !slices.Contains(c.conf.ValidAttachments, types.GCAttachment{ContainerID: k.ContainerID, IfName: k.IfName}) {
			errs = append(errs, c.store.Delete(k))
		}
	}
	return errors.Join(append(errs, dropLocks(c.conf.StateDir, c.store))...)
}

func dropLocks(stateDir string, store attachment.Store) error {
	ids, err := netns.Locks(stateDir)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	if err := store.All(func(r attachment.Record, _ error) { used[r.NamespaceID] = true }); err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if !used[id] {
			errs = append(errs, netns.Forget(stateDir, id))
		}
	}
	return errors.Join(errs...)
}
