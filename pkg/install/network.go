package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// keptSuffix marks a .conf or .json that was converted to a .conflist. The runtime ignores it; Uninstall restores it.
const keptSuffix = ".detour-original"

// network is a configuration that the runtime can load.
type network struct {
	name string
	file string // in the folder
	path string // of the file itself, if the one in the folder is a link
	text []byte
	info fs.FileInfo
	// list is where the list of plugins is in the text: everywhere, unless it is a part of Multus's configuration.
	list span
	// single is true for a single plugin's configuration: only a .conflist can have more.
	single bool
}

// extensions are those that containerd and CRI-O read. Only a .conflist may have a list of plugins.
var extensions = []string{".conf", ".conflist", ".json"}

// confFiles lists the files that the runtime reads, in its order: by name.
func confFiles(dir string) ([]string, error) {
	paths, err := libcni.ConfFiles(dir, extensions)
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	slices.Sort(names)
	return names, err
}

// firstNetwork returns the network that the runtime uses: the first configuration that libcni can load. It skips invalid ones as
// CRI-O does; containerd has no network while an invalid one is first. An unreadable file is an error, as the runtime may be
// able to read it.
func firstNetwork(dir string, passOver ...string) (network, error) {
	names, err := confFiles(dir)
	if err != nil {
		return network{}, fmt.Errorf("list network configurations: %w", err)
	}
	var invalid []error
	for _, name := range names {
		if slices.Contains(passOver, name) {
			continue
		}
		n, err := readFile(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has gone since
		}
		if err != nil {
			return network{}, fmt.Errorf("read network configuration: %w", err)
		}
		if err := n.load(); err != nil {
			if beingWritten(n.path) { // the runtime will have it in a moment
				return network{}, fmt.Errorf("read network configuration: %s: another program is writing it: %w", n.path, err)
			}
			invalid = append(invalid, fmt.Errorf("%s: %w", name, err))
			continue
		}
		return n, nil
	}
	err = fmt.Errorf("%w in %s", ErrNoNetwork, dir)
	if len(invalid) > 0 {
		err = fmt.Errorf("%w: %w", err, errors.Join(invalid...))
	}
	return network{}, err
}

// readFile reads a file of the folder. A link out of the folder is an error: on the host it may lead to another file.
func readFile(dir, name string) (network, error) {
	n := network{file: name, path: filepath.Join(dir, name)}
	info, err := os.Lstat(n.path)
	if err != nil {
		return n, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(n.path)
		if err != nil {
			return n, err
		}
		if target != filepath.Base(target) {
			return n, fmt.Errorf("%s is a symbolic link that leads out of the folder, to %s", n.path, target)
		}
		return followed(dir, name, target)
	}
	n.info = info
	n.text, err = os.ReadFile(n.path)
	return n, err
}

// followed reads the file of the same folder that a link leads to.
func followed(dir, name, target string) (network, error) {
	n := network{file: name, path: filepath.Join(dir, target)}
	var err error
	if n.info, err = os.Lstat(n.path); err != nil {
		return n, err
	}
	if !n.info.Mode().IsRegular() {
		return n, fmt.Errorf("%s leads to %s, which is not a file", filepath.Join(dir, name), target)
	}
	n.text, err = os.ReadFile(n.path)
	return n, err
}

// load loads the file as libcni does, for its network's name.
func (n *network) load() error {
	n.list = span{0, len(n.text)}
	if filepath.Ext(n.file) == ".conflist" {
		loaded, err := libcni.ConfListFromFile(n.path)
		if err != nil {
			return err
		}
		n.name = loaded.Name
		return nil
	}
	n.single = true
	loaded, err := libcni.NetworkPluginConfFromBytes(n.text)
	if err != nil {
		return err
	}
	n.name = loaded.Network.Name
	_, err = listOf(n.text, nil) // as libcni makes a list of it
	return err
}

// conflist adds the entry to the network that the runtime uses.
func (i *Installer) conflist(r *round) error {
	n, err := firstNetwork(i.conf.ConfDir)
	if err == nil {
		n, err = i.behindMultus(n)
	}
	if err != nil {
		return err
	}
	r.Network, r.Conflist = n.name, i.confPath(n.file)
	if n.single {
		return i.convert(r, n)
	}
	edited, err := n.edit(setEntry, i.entry)
	if err != nil {
		return fmt.Errorf("install %s: %s: %w", PartConflist, r.Conflist, err)
	}
	wrong := ""
	if !bytes.Equal(edited, n.text) {
		wrong = "entry missing or different"
	}
	return r.ensure(PartConflist, r.Conflist, "", wrong, func() error {
		return i.files.rewrite(n.path, edited, ownedBy(n.info), n.text)
	})
}

// edit returns the text with the list edited.
func (n network) edit(edit func(list []byte, e entry) ([]byte, error), e entry) ([]byte, error) {
	edited, err := edit(n.text[n.list.start:n.list.end], e)
	return slices.Concat(n.text[:n.list.start], edited, n.text[n.list.end:]), err
}

// convert makes a .conflist of a single plugin's configuration, which has no place for a second plugin. It keeps the configuration
// under a name that the runtime ignores. In between, the runtime uses one or the other; both have the same network.
func (i *Installer) convert(r *round, n network) error {
	original, kept := i.confPath(n.file), i.confPath(n.file+keptSuffix)
	made, err := listOf(n.text, &i.entry)
	if err != nil {
		return fmt.Errorf("install %s: %s: %w", PartConflist, original, err)
	}
	target, err := i.targetOf(n)
	if err != nil {
		return fmt.Errorf("install %s: %w", PartConflist, err)
	}
	r.Conflist = target
	return r.ensure(PartConflist, target, "", n.file+" has place for one plugin only", func() error {
		// The copy comes first: it tells our list from another one of that name. It can't be a link, as renaming a file to
		// another name of itself does nothing.
		if err := i.files.write(kept, bytes.NewReader(n.text), ownedBy(n.info)); err != nil {
			return err
		}
		if err := i.files.write(target, bytes.NewReader(made), ownedBy(n.info)); err != nil {
			return err
		}
		if err := i.files.move(original, kept); err != nil {
			return err
		}
		// another program may have rewritten it meanwhile
		now, err := os.ReadFile(kept)
		if err != nil || bytes.Equal(now, n.text) {
			return err
		}
		if made, err = listOf(now, &i.entry); err != nil {
			return err
		}
		return i.files.write(target, bytes.NewReader(made), ownedBy(n.info))
	})
}

// targets are the names for the list made of a file: the usual one, and another in case that is taken.
func targets(file string) [2]string {
	return [2]string{strings.TrimSuffix(file, filepath.Ext(file)) + ".conflist", file + ".conflist"}
}

// targetOf returns the path for the list made of n. The runtime must choose it once n is gone.
func (i *Installer) targetOf(n network) (string, error) {
	names := targets(n.file)
	for _, name := range names {
		if exists(i.confPath(name)) && !i.isMade(name, n.file) {
			continue
		}
		rest, err := firstNetwork(i.conf.ConfDir, name, n.file)
		if err != nil && !errors.Is(err, ErrNoNetwork) {
			return "", err
		}
		if err == nil && rest.file < name {
			continue
		}
		return i.confPath(name), nil
	}
	return "", fmt.Errorf("%s has place for one plugin only, and neither %s nor %s can take its place: make it a .conflist",
		i.confPath(n.file), names[0], names[1])
}

// isMade reports whether we made the list of that file, even if another program has changed it since. A list without our entry
// counts only if it says the same as the file.
func (i *Installer) isMade(name, file string) bool {
	kept, err := os.ReadFile(i.confPath(file + keptSuffix))
	if err != nil {
		return false
	}
	n, err := readFile(i.conf.ConfDir, name)
	if err != nil {
		return false
	}
	l, err := parseList(n.text, i.entry.name)
	return err == nil && (len(l.ours) > 0 || i.isUnchanged(n.text, kept))
}

// isUnchanged reports whether a list is, but for our entry, what listOf makes of a single plugin's configuration.
func (i *Installer) isUnchanged(text, single []byte) bool {
	made, err := listOf(single, nil)
	if err != nil {
		return false
	}
	same, err := sameForeign(text, made, i.entry.name)
	return err == nil && same
}
