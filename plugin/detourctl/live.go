package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/trace"
)

// liveOptions choose a network namespace of this node.
type liveOptions struct {
	pod, uid, netns string
	node            bool
	stateDir        string
}

func (o *liveOptions) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.pod, "pod", "", "the pod of this node, as NAMESPACE/NAME")
	f.StringVar(&o.uid, "pod-uid", "", "the pod's UID, if several pods have its name")
	f.StringVar(&o.netns, "netns", "", "a network namespace by its path, such as /run/netns/NAME")
	f.BoolVar(&o.node, "node", false, "the network namespace that detourctl runs in")
	f.StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "the net conf's stateDir")
}

func (o liveOptions) given() bool { return o.node || o.pod != "" || o.netns != "" }

func (o liveOptions) namespace(context.Context) (*trace.Namespace, error) {
	return nil, errors.New("live state is not read yet")
}
