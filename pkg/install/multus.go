package install

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
)

// Multus has one plugin, which passes a pod on to the node's real network first and then to the networks of the pod's annotation.
// detour belongs into that real network: behind Multus it would be missing whenever Multus has just written its file.

// multusTypes are Multus's plugins: one delegates itself, the other asks Multus's daemon to.
var multusTypes = []string{"multus", "multus-shim"}

// multus is Multus's configuration: the real network is a file, or a copy in the text.
type multus struct {
	Type           string
	ClusterNetwork string
}

// behindMultus returns the network whose list takes the entry: Multus's real one if Multus is first, else n itself. If Multus names
// the real network in another way than by a list, the entry goes behind Multus.
func (i *Installer) behindMultus(n network) (network, error) {
	for _, at := range n.plugins() {
		var m multus
		if err := json.Unmarshal(n.text[at.start:at.end], &m); err != nil || !slices.Contains(multusTypes, m.Type) {
			continue
		}
		if filepath.Ext(m.ClusterNetwork) == ".conflist" { // Multus may see the folder under another name
			return i.clusterNetwork(n, m.ClusterNetwork)
		}
		if first, ok := delegate(n.text, at); ok && m.ClusterNetwork == "" {
			n.list, n.single, n.setEntry = first, false, setDelegate
		}
	}
	return n, nil
}

func (i *Installer) clusterNetwork(n network, path string) (network, error) {
	name := filepath.Base(path)
	if isMade(name) { // Multus came after us
		name = i.originalOf(name)
	}
	master, err := readFile(i.conf.ConfDir, name)
	if err == nil {
		err = master.load()
	}
	if err != nil {
		return n, fmt.Errorf("read network configuration: Multus has the cluster network %s in %s: %w", path, n.path, err)
	}
	return master, nil
}

// plugins are the places of the plugins in the text, also of a single one.
func (n network) plugins() []span {
	if l, err := parseList(n.text, ""); err == nil && len(l.plugins) > 0 {
		return l.plugins
	}
	return []span{{0, len(n.text)}}
}

// delegate is the place of the first delegate of the plugin at that place.
func delegate(text []byte, at span) (span, bool) {
	delegates, err := member(text, at, "delegates")
	if err != nil {
		return span{}, false
	}
	_, each, err := elements(text, delegates)
	if err != nil || len(each) == 0 {
		return span{}, false
	}
	return each[0], true
}

// setDelegate is setEntry for a delegate, which may be a single plugin's configuration. Multus takes a list as well.
func setDelegate(text []byte, e entry) ([]byte, error) {
	if plugins, err := member(text, span{0, len(text)}, "plugins"); err == nil && plugins == (span{}) {
		return listOf(text, &e)
	}
	return setEntry(text, e)
}

// dropDelegated is dropEntry for the copies of a network in Multus's file.
func dropDelegated(n network, e entry) ([]byte, error) {
	for _, at := range slices.Backward(n.plugins()) {
		list, ok := delegate(n.text, at)
		if !ok {
			continue
		}
		if _, err := parseList(n.text[list.start:list.end], e.name); err != nil {
			continue
		}
		n.list = list
		var err error
		if n.text, err = n.edit(dropEntry, e); err != nil {
			return nil, err
		}
	}
	return n.text, nil
}
