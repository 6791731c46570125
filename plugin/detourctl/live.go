package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/podns"
	"github.com/detour-cni/detour/pkg/snapshot"
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

// do calls f in the namespace.
func (o liveOptions) do(f func() error) error {
	if o.node {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return f()
	}
	path, err := o.path()
	if err != nil {
		return err
	}
	ns, err := netns.Open(path)
	if errors.Is(err, netns.ErrHost) {
		return fmt.Errorf("%s is the namespace that detourctl runs in: use --node", path)
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

func (o liveOptions) path() (string, error) {
	found, err := o.find()
	return found.Netns, err
}

// find returns the pod; of one that --netns names only the path is known.
func (o liveOptions) find() (podns.Pod, error) {
	if o.netns != "" {
		return podns.Pod{Netns: o.netns}, nil
	}
	namespace, name, ok := strings.Cut(o.pod, "/")
	if !ok {
		return podns.Pod{}, fmt.Errorf("--pod: %q is not NAMESPACE/NAME", o.pod)
	}
	return podns.Finder{StateDir: o.stateDir}.Find(pod.ID{Namespace: namespace, Name: name}, o.uid)
}

// walk follows the packet through the namespace as it is now.
func (o liveOptions) walk(p trace.Packet) (ns *trace.Namespace, r trace.Result, err error) {
	err = o.do(func() error {
		return snapshot.With(func(now *trace.Namespace) (err error) {
			ns = now
			if err := knownInterfaces(ns, p); err != nil {
				return err
			}
			r, err = trace.Walk(ns, p)
			return err
		})
	})
	return ns, r, err
}
