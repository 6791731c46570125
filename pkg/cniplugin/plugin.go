// Package cniplugin serves the CNI verbs: it puts net conf, pod, mesh, rules and backend into their order and turns what
// comes of it into results, errors, log lines and attachment state.
package cniplugin

import (
	"errors"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/detour-cni/detour/pkg/netns"
)

// CNI error codes of the plugin's own, beside those of the specification.
const (
	CodeRefused   uint = 100 // the pod or the mesh's configuration has to be changed
	CodeDifferent uint = 101 // CHECK found the kernel's rules to differ from those that ADD programmed
)

// Funcs are the CNI verbs.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Check: check, Del: del, GC: gc, Status: status}
}

// Versions are the CNI versions that the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// refusedError marks an error that only a change of the pod or of the mesh's configuration mends.
type refusedError struct{ error }

func refused(err error) error { return refusedError{err} }

// cniError gives an error its code; one that has a code keeps it.
func cniError(err error) *types.Error {
	var coded *types.Error
	switch {
	case errors.As(err, &coded):
		return coded
	case errors.As(err, new(refusedError)):
		return types.NewError(CodeRefused, err.Error(), "")
	case errors.Is(err, netns.ErrHost), errors.Is(err, netns.ErrGone):
		return types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}
