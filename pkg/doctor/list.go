package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/netconf"
)

// extensions are the files that runtimes read.
var extensions = []string{".conf", ".conflist", ".json"}

// list is one file of the runtime's, or what it hands the pod on to.
type list struct {
	path    string
	invalid error    // why no runtime can load it
	types   []string // of its plugins
	entry   map[string]json.RawMessage
}

// multusTypes are Multus's plugins, which call those of another list.
var multusTypes = []string{"multus", "multus-shim"}

// lists reads the runtime's folder, in the runtime's order.
func lists(dir string) ([]list, error) {
	paths, err := libcni.ConfFiles(dir, extensions)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list network configurations: %w", err)
	}
	slices.Sort(paths)
	var all []list
	for _, path := range paths {
		all = append(all, readList(path))
	}
	return all, nil
}

func readList(path string) list {
	text, err := os.ReadFile(path)
	if err != nil {
		return list{path: path, invalid: err}
	}
	l := parseList(path, text)
	if l.invalid = loads(path, text); l.invalid != nil {
		return l
	}
	for _, plugin := range pluginsOf(text) {
		if !slices.Contains(multusTypes, plugin.Type) {
			continue
		}
		switch {
		case filepath.Ext(plugin.ClusterNetwork) == ".conflist":
			return readList(filepath.Join(filepath.Dir(path), filepath.Base(plugin.ClusterNetwork)))
		case plugin.ClusterNetwork == "" && len(plugin.Delegates) > 0:
			return parseList(path+" (Multus's first delegate)", plugin.Delegates[0])
		}
	}
	return l
}

// loads says whether libcni, and so the runtime, can load a file.
func loads(path string, text []byte) error {
	if filepath.Ext(path) == ".conflist" {
		_, err := libcni.ConfListFromBytes(text)
		return err
	}
	_, err := libcni.NetworkPluginConfFromBytes(text)
	return err
}

type plugin struct {
	Type           string
	ClusterNetwork string
	Delegates      []json.RawMessage
}

func pluginsOf(text []byte) []plugin {
	var of struct {
		plugin
		Plugins []plugin
	}
	if json.Unmarshal(text, &of) == nil && len(of.Plugins) == 0 {
		return []plugin{of.plugin}
	}
	return of.Plugins
}

func parseList(path string, text []byte) list {
	l := list{path: path}
	for _, p := range pluginsOf(text) {
		l.types = append(l.types, p.Type)
	}
	if entry, err := netconf.Entry(text); err == nil && string(entry["type"]) == `"`+netconf.Type+`"` {
		l.entry = entry
	}
	return l
}

// checkList says whether the runtime calls detour: it loads the first list alone.
func checkList(dir string, all []list, err error) Check {
	c := Check{Name: CheckList, Result: Wrong}
	own := slices.IndexFunc(all, func(l list) bool { return l.entry != nil })
	switch {
	case err != nil:
		c.Result, c.Found, c.Do = Unknown, err.Error(), "run detourctl as root"
	case len(all) == 0:
		c.Result, c.Found = Limited, dir+" has no network configuration"
		c.Do = "install the network's own plugin; the agent then puts detour behind it"
	case all[0].invalid != nil:
		c.Found = fmt.Sprintf("%s, which is first, is invalid: %v", all[0].path, all[0].invalid)
		c.Do = "repair or remove it: containerd has no network until then, CRI-O takes the next"
	case own < 0:
		c.Result, c.Found = Limited, "no list in "+dir+" calls detour: the runtime loads "+all[0].String()
		c.Do = "install detour (deploy/README.md); pods start unmeshed until then"
	case own > 0:
		c.Found = fmt.Sprintf("the runtime loads %s, and not %s, which calls detour", all[0], all[own].path)
		c.Do = "see detour-agent's log: it puts detour into the first list; or remove the file that is ahead"
	case all[0].types[0] == netconf.Type:
		c.Found = all[0].String() + " calls detour first"
		c.Do = "put it behind the plugin that gives pods their addresses"
	default:
		c.Result, c.Found = Fine, all[0].String()
	}
	return c
}

func (l list) String() string { return l.path + ": " + strings.Join(l.types, ", ") }

// netConf parses the entry.
func (l list) netConf() (netconf.Conf, error) {
	text, err := json.Marshal(l.entry)
	if err != nil {
		return netconf.Conf{}, err
	}
	return netconf.Parse(text)
}
