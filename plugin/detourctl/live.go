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

// register registers the flags that choose a pod.
func (o *liveOptions) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.pod, "pod", "", "a pod of this node, as NAMESPACE/NAME")
	f.StringVar(&o.uid, "pod-uid", "", "the pod's UID, if several pods have its name")
	f.StringVar(&o.netns, "netns", "", "a network namespace by its path, such as /run/netns/NAME")
	f.StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "the net conf's stateDir")
	c.MarkFlagsMutuallyExclusive("pod", "netns")
}

// registerNode registers the flag for a verb that can look at the node itself, too.
func (o *liveOptions) registerNode(c *cobra.Command) {
	c.Flags().BoolVar(&o.node, "node", false, "the network namespace that detourctl runs in")
}

func (o liveOptions) given() bool { return o.node || o.pod != "" || o.netns != "" }

// do calls f in the namespace.
func (o liveOptions) do(f func() error) error {
	if o.node {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return f()
	}
	_, ns, err := o.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

// open finds the pod and opens its namespace, which the caller must Close. Of one that --netns names, only the path is known.
func (o liveOptions) open() (podns.Pod, *netns.Pod, error) {
	found, err := o.find()
	if err != nil {
		return found, nil, err
	}
	ns, err := netns.Open(found.Netns)
	if errors.Is(err, netns.ErrHost) {
		err = fmt.Errorf("%w: only trace looks at it, with --node", err)
	}
	return found, ns, err
}

func (o liveOptions) find() (podns.Pod, error) {
	if o.netns != "" {
		return podns.Pod{Netns: o.netns}, nil
	}
	id, err := podID(o.pod)
	if err != nil {
		return podns.Pod{}, fmt.Errorf("--pod: %w", err)
	}
	return podns.Finder{StateDir: o.stateDir}.Find(id, o.uid)
}

func podID(text string) (pod.ID, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" {
		return pod.ID{}, fmt.Errorf("%q is not NAMESPACE/NAME", text)
	}
	return pod.ID{Namespace: namespace, Name: name}, nil
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
