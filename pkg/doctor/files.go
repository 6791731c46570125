package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netconf"
)

// What a file system must have left: the records and locks of some pods.
const (
	minBytes  = 1 << 20
	minInodes = 64
)

// checkStateDir says whether ADD can write its records. The folder need not exist yet.
func checkStateDir(dir string) Check {
	c := Check{Name: CheckStateDir, Result: Fine}
	info, err := os.Stat(dir)
	at, missing := dir, errors.Is(err, fs.ErrNotExist)
	for missing && at != filepath.Dir(at) {
		at = filepath.Dir(at)
		if _, err = os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	var system unix.Statfs_t
	if err == nil {
		err = unix.Statfs(at, &system)
	}
	if err != nil {
		c.Result, c.Found, c.Do = Wrong, err.Error(), "ADD writes its records there: make the folder, or name another one as stateDir"
		return c
	}
	c.Found = fmt.Sprintf("%s, %d MiB and %d inodes left", dir, system.Bavail*uint64(system.Bsize)>>20, system.Ffree)
	if missing {
		c.Found += "; ADD makes it"
	}
	switch {
	case !missing && !info.IsDir():
		c.Result, c.Found, c.Do = Wrong, dir+" is not a folder", "remove it"
	case system.Flags&unix.ST_RDONLY != 0:
		c.Result, c.Do = Wrong, "the file system is read-only: mount it read-write, or name another folder as stateDir"
	case system.Bavail*uint64(system.Bsize) < minBytes, system.Files > 0 && system.Ffree < minInodes:
		c.Result, c.Do = Wrong, "make room: ADD writes a record for each pod"
	case !missing && info.Mode().Perm()&0o077 != 0:
		c.Result, c.Do = Limited, "chmod 0700 "+dir+": its records name pods, and its socket answers who can open it"
		c.Found += fmt.Sprintf("; its mode is %04o", info.Mode().Perm())
	}
	return c
}

// checkFolder says whether the node agent can write to a folder of the host.
func checkFolder(name Name, dir string) Check {
	c := Check{Name: name, Result: Fine, Found: dir}
	err := unix.Access(dir, unix.W_OK)
	switch {
	case errors.Is(err, unix.ENOENT):
		c.Found += " does not exist; the agent's pod makes it"
	case err != nil:
		c.Result, c.Found = Wrong, fmt.Sprintf("%s can't be written: %v", dir, err)
		c.Do = "the agent installs detour there: make it writable, or name the folder that the runtime is set to"
	}
	return c
}

// checkPlugin says whether the runtime can start the plugin.
func checkPlugin(dir string) Check {
	c := Check{Name: CheckPlugin, Result: Fine, Found: filepath.Join(dir, netconf.Type)}
	info, err := os.Stat(c.Found)
	var system unix.Statfs_t
	if err == nil {
		err = unix.Statfs(dir, &system)
	}
	switch {
	case err != nil:
		c.Result, c.Found, c.Do = Wrong, err.Error(), "see whether detour-agent runs on this node; name the runtime's folder of plugins by --cni-bin-dir"
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		c.Result, c.Do = Wrong, "remove it: the agent installs it again"
		c.Found += fmt.Sprintf(" is no program (mode %s)", info.Mode())
	case system.Flags&unix.ST_NOEXEC != 0:
		c.Result, c.Do = Wrong, "mount it without noexec, or set another folder of plugins in the runtime and in the agent"
		c.Found += " is on a file system from which no program may be started (noexec)"
	}
	return c
}
