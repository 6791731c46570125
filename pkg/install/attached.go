package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/attachment"
)

// attached lists the pods for whose DEL the runtime may still call the plugin. A runtime that keeps a pod's configuration until
// the pod's end, as CRI-O does, then calls every plugin that the pod was started with, and if one of them is missing, the others
// are not called: the pod's addresses are never released. One that takes the node's present configuration, as containerd does,
// calls the plugin no more and leaves the record behind, so a record is of a pod that has ended if the pod's namespace has
// gone and libcni keeps nothing of it either.
func (i *Installer) attached() ([]string, error) {
	pods, err := i.kept()
	if err != nil {
		return nil, err
	}
	err = attachment.NewStore(i.conf.StateDir).All(func(r attachment.Record, err error) {
		repaired := r.Network == attachment.RepairNetwork // which was started without the plugin
		if err == nil && !repaired && namespaceStands(r.Netns) {
			pods[r.Key] = podName(r.Pod, r.Key)
		}
	})
	return slices.Compact(slices.Sorted(maps.Values(pods))), err
}

// kept lists the attachments of which libcni keeps a configuration with the plugin in it, and their pods. It does so from the end of
// ADD to the end of DEL.
func (i *Installer) kept() (map[attachment.Key]string, error) {
	files, err := os.ReadDir(i.conf.CacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the runtime's attachments: %w", err)
	}
	pods := map[attachment.Key]string{}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(i.conf.CacheDir, f.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // DEL was just done
		}
		if err != nil {
			return nil, fmt.Errorf("read the runtime's attachment: %w", err)
		}
		var kept struct {
			ContainerID, IfName, NetworkName string
			Config                           []byte
			CNIArgs                          [][2]string
		}
		if err := json.Unmarshal(text, &kept); err != nil || !i.isIn(kept.Config) {
			continue // nor can libcni call the plugin with what is no configuration
		}
		k := attachment.Key{Network: kept.NetworkName, ContainerID: kept.ContainerID, IfName: kept.IfName}
		args := map[string]string{}
		for _, a := range kept.CNIArgs {
			args[a[0]] = a[1]
		}
		pods[k] = podName(strings.Trim(args["K8S_POD_NAMESPACE"]+"/"+args["K8S_POD_NAME"], "/"), k)
	}
	return pods, nil
}

// isIn says whether the plugin is in a list.
func (i *Installer) isIn(text []byte) bool {
	list, err := libcni.ConfListFromBytes(text)
	return err == nil && slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == i.entry.name })
}

func podName(pod string, k attachment.Key) string {
	if pod == "" {
		return "container " + k.ContainerID
	}
	return pod
}

// namespaceStands says whether a pod's namespace is there yet.
func namespaceStands(path string) bool { return path != "" && exists(withoutLink(path)) }

// withoutLink is a path without the link from /var/run to /run, which a host has and the agent's image has not.
func withoutLink(path string) string {
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}
