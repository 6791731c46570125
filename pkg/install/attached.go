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
	"github.com/detour-cni/detour/pkg/hostfile"
)

// attached lists the pods for whose DEL the runtime may still call the plugin. CRI-O keeps a pod's configuration until the pod ends.
// It then calls every plugin the pod was started with, and if one is missing, it calls none: the pod's addresses are never
// released. containerd takes the node's present configuration: it no longer calls the plugin and leaves the record behind. So a
// record's pod has ended if its namespace is gone and libcni keeps nothing of it.
func (i *Installer) attached() ([]string, error) {
	pods, err := i.kept()
	if err != nil {
		return nil, err
	}
	err = attachment.NewStore(i.conf.StateDir).All(func(r attachment.Record, err error) {
		repaired := r.Network == attachment.RepairNetwork // its pod was started without the plugin
		if err == nil && !repaired && namespaceStands(r.Netns) {
			pods[r.Key] = podName(r.Pod, r.Key)
		}
	})
	return slices.Compact(slices.Sorted(maps.Values(pods))), err
}

// kept returns the pods of the attachments whose cached configuration has the plugin in it. libcni keeps it from the end of ADD to
// the end of DEL.
func (i *Installer) kept() (map[attachment.Key]string, error) {
	files, err := os.ReadDir(i.conf.CacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the runtime's attachments: %w", err)
	}
	pods := map[attachment.Key]string{}
	for _, f := range files {
		text, err := hostfile.Read(filepath.Join(i.conf.CacheDir, f.Name()), maxConfSize)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, hostfile.ErrNotRegular) {
			continue // DEL was just done, or libcni can't read it either
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
			continue // libcni can't call the plugin with it either
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

// isIn reports whether a list has the plugin.
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

// namespaceStands reports whether a pod's namespace still exists.
func namespaceStands(path string) bool { return path != "" && exists(withoutLink(path)) }

// withoutLink resolves the link from /var/run to /run, which the host has and the agent's image lacks.
func withoutLink(path string) string {
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		return "/run/" + rest
	}
	return path
}
