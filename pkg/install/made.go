package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// A single plugin's configuration has no place for a second plugin. So we make a list of it, which comes before it: the runtime
// takes the list, and the file stays where its owner expects it. Where it goes, the list follows.

// madeSuffix ends the names of these lists, and of no other files. A hyphen sorts before the dot of the file's own name.
const madeSuffix = "-made-by-detour.conflist"

func madeOf(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + madeSuffix }

func isMade(name string) bool { return strings.HasSuffix(name, madeSuffix) }

// originalOf is the name of the file of which the list of that name is made, or the list's own if there is none.
func (i *Installer) originalOf(made string) string {
	names, err := confFiles(i.conf.ConfDir)
	if err != nil {
		return made
	}
	for _, name := range names {
		if name != made && madeOf(name) == made {
			return name
		}
	}
	return made
}

func (i *Installer) hasOriginal(made string) bool { return i.originalOf(made) != made }

func none(string) bool { return false }

// makeList makes the list of a single plugin's configuration, and removes those of others.
func (i *Installer) makeList(r *round, n network) error {
	name := madeOf(n.file)
	r.Conflist = i.confPath(name)
	now, err := hostfile.Read(r.Conflist, maxConfSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("install %s: %w", PartConflist, err)
	}
	made, err := i.made(now, n.text)
	if err != nil {
		return fmt.Errorf("install %s: %s: %w", PartConflist, n.path, err)
	}
	wrong := ""
	if !bytes.Equal(made, now) {
		wrong = n.file + " has place for one plugin only"
	}
	if err := r.ensure(PartConflist, r.Conflist, string(n.text), wrong, func() error {
		return i.files.write(r.Conflist, bytes.NewReader(made), ownedBy(n.info))
	}); err != nil {
		return err
	}
	return i.dropMade(r, func(made string) bool { return made == name })
}

// made returns what the list should be. It keeps plugins that others have added to the present one.
func (i *Installer) made(now, single []byte) ([]byte, error) {
	if beginsWith(now, single) {
		return setEntry(now, i.entry)
	}
	return listOf(single, &i.entry)
}

// beginsWith reports whether the first plugin of a list is that one.
func beginsWith(list, single []byte) bool {
	l, err := parseList(list, "")
	if err != nil || len(l.plugins) == 0 {
		return false
	}
	first, err := decode(list[l.plugins[0].start:l.plugins[0].end])
	if err != nil {
		return false
	}
	want, err := decode(single)
	return err == nil && reflect.DeepEqual(first, want)
}

// dropMade removes the lists that we made, but for those to keep: the files they were made of are gone, or not the runtime's any
// more.
func (i *Installer) dropMade(r *round, keep func(name string) bool) error {
	names, err := i.regular()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isMade(name) || keep(name) {
			continue
		}
		path := i.confPath(name)
		if _, err := i.files.remove(path); err != nil {
			return fmt.Errorf("remove %s: %w", PartConflist, err)
		}
		r.Changes = append(r.Changes, Change{Part: PartConflist, File: path, Reason: "not wanted"})
	}
	return nil
}

// removeMade removes the lists that we made, but for those to which others have added plugins.
func (i *Installer) removeMade() error {
	names, err := i.regular()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isMade(name) {
			continue
		}
		n, err := readFile(i.conf.ConfDir, name)
		if err != nil {
			return err
		}
		if l, err := parseList(n.text, i.entry.name); err == nil && len(l.plugins)-len(l.ours) > 1 {
			continue
		}
		if _, err := i.files.remove(n.path); err != nil {
			return err
		}
	}
	return nil
}
