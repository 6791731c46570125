// Package cniplugin serves the CNI verbs. It connects net conf, pod, decision and backend, and turns the outcome into results,
// errors, log lines and records.
package cniplugin

import (
	"context"
	"errors"
	"log/slog"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/netns"
)

// Funcs are the CNI verbs.
func Funcs() skel.CNIFuncs {
	verb := func(name string, serve func(*call) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			c := newCall(name, args)
			defer c.logFile.Close()
			if err := serve(c); err != nil {
				return cniError(err)
			}
			return nil
		}
	}
	return skel.CNIFuncs{
		Add:    verb("ADD", add),
		Check:  verb("CHECK", logged(slog.LevelError, "check-failed", check)),
		Del:    verb("DEL", del),
		GC:     verb("GC", logged(slog.LevelError, "gc-failed", gc)),
		Status: verb("STATUS", logged(slog.LevelDebug, "status-failed", status)), // a runtime asks every few seconds, and logs it itself
	}
}

// logged serves a verb that needs a valid net conf, and logs its failure as event.
func logged(level slog.Level, event string, serve func(*call) error) func(*call) error {
	return func(c *call) error {
		err := c.confErr
		if err == nil {
			err = serve(c)
		}
		if err == nil {
			return nil
		}
		coded := cniError(err)
		if coded.Code != agentapi.CodeDifferent { // check has logged all differences
			c.log.Log(context.Background(), level, c.verb+" failed", "event", event, "code", coded.Code, "reason", err.Error())
		}
		return coded
	}
}

// Versions are the CNI versions that the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// refusedError marks an error that goes away only if somebody changes the pod or the mesh's configuration.
type refusedError struct{ error }

func refused(err error) error { return refusedError{err} }

// cniError gives an error its code; one that has a code keeps it.
func cniError(err error) *types.Error {
	var coded *types.Error
	switch {
	case errors.As(err, &coded):
		return coded
	case errors.As(err, new(refusedError)):
		return types.NewError(agentapi.CodeRefused, err.Error(), "")
	case errors.Is(err, netns.ErrHost), errors.Is(err, netns.ErrGone):
		return types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}
