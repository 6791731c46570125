package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// network is a configuration that the runtime can load.
type network struct {
	name string
	file string // in the folder
	path string // of the file itself, if the one in the folder is a link
	text []byte
	info fs.FileInfo
	// list is where the list of plugins is in the text: everywhere, unless it is a part of Multus's configuration.
	list span
	// setEntry puts the entry into it.
	setEntry func(list []byte, e entry) ([]byte, error)
	// single is true for a single plugin's configuration: only a .conflist can have more.
	single bool
}

// maxConfSize is the size in bytes of the largest configuration or credential to read.
const maxConfSize = 2 << 20

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

// firstNetwork returns the network that the runtime would use without us: the first configuration that libcni can load, and that
// we have not made. It skips invalid ones as CRI-O does; containerd has no network while an invalid one is first. An unreadable
// or huge file is an error, as the runtime may be able to read it.
func firstNetwork(dir string) (network, error) {
	names, err := confFiles(dir)
	if err != nil {
		return network{}, fmt.Errorf("list network configurations: %w", err)
	}
	var invalid []error
	for _, name := range names {
		if isMade(name) {
			continue
		}
		n, err := readFile(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has gone since
		}
		if errors.Is(err, hostfile.ErrNotRegular) {
			invalid = append(invalid, err)
			continue
		}
		if err != nil {
			return network{}, fmt.Errorf("read network configuration: %w", hostfile.Advise(err))
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
	n.text, err = hostfile.Read(n.path, maxConfSize)
	return n, err
}

// followed reads the file of the same folder that a link leads to.
func followed(dir, name, target string) (network, error) {
	n := network{file: name, path: filepath.Join(dir, target)}
	var err error
	if n.info, err = os.Lstat(n.path); err != nil {
		return n, err
	}
	if n.info.Mode()&fs.ModeSymlink != 0 {
		return n, fmt.Errorf("%s leads to %s, which is a symbolic link, too: replace them by a file", filepath.Join(dir, name), target)
	}
	n.text, err = hostfile.Read(n.path, maxConfSize)
	return n, err
}

// load loads the file as libcni does, for its network's name.
func (n *network) load() error {
	n.list, n.setEntry = span{0, len(n.text)}, setEntry
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
	if errors.Is(err, ErrNoNetwork) {
		return errors.Join(err, i.dropMade(r, i.hasOriginal)) // which may be invalid for a while
	}
	if err == nil {
		n, err = i.behindMultus(n)
	}
	if err != nil {
		return err
	}
	r.Network = n.name
	if n.single {
		return i.makeList(r, n)
	}
	r.Conflist = i.confPath(n.file)
	edited, err := n.edit(n.setEntry, i.entry)
	if err != nil {
		return fmt.Errorf("install %s: %s: %w", PartConflist, r.Conflist, err)
	}
	wrong := ""
	if !bytes.Equal(edited, n.text) {
		wrong = "entry missing or different"
	}
	if err := r.ensure(PartConflist, r.Conflist, "", wrong, func() error {
		return i.files.rewrite(n.path, edited, ownedBy(n.info), n.text)
	}); err != nil {
		return err
	}
	return i.dropMade(r, none)
}

// edit returns the text with the list edited.
func (n network) edit(edit func(list []byte, e entry) ([]byte, error), e entry) ([]byte, error) {
	edited, err := edit(n.text[n.list.start:n.list.end], e)
	return slices.Concat(n.text[:n.list.start], edited, n.text[n.list.end:]), err
}
