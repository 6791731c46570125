package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// Uninstall removes what is ours: the entry from every list in the folder, whatever the name of its file, then the credentials, then
// the binary. A list that was made of a .conf goes too, unless another program has added a plugin to it. If an entry can't be
// removed, the rest stays, as the runtime could start no pod otherwise. The binary stays while the runtime may call it for the DEL
// of a pod: pods has their names, and an Uninstall after they have ended removes it. Uninstall is idempotent. No Run may be going
// on, here or in another process.
func (i *Installer) Uninstall() (pods []string, _ error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := errors.Join(i.removeMade(), i.dropEntries()); err != nil {
		return nil, fmt.Errorf("uninstall %s: %w", PartConflist, hostfile.Advise(err))
	}
	if err := errors.Join(i.removeCredentials(&round{}), i.clean()); err != nil {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	pods, err := i.attached()
	if err != nil {
		return nil, fmt.Errorf("uninstall %s: %w", PartBinary, err)
	}
	if len(pods) > 0 {
		return pods, nil
	}
	if _, err := i.files.remove(i.binaryPath()); err != nil {
		return nil, fmt.Errorf("uninstall %s: %w", PartBinary, hostfile.Advise(err))
	}
	return nil, nil
}

// UninstallOptions say how UninstallAll goes on.
type UninstallOptions struct {
	// Once does what can be done now and leaves the binary if pods need it. Otherwise UninstallAll tries again after each Pause.
	Once  bool
	Pause time.Duration
	// Socket is the name of the agent's socket in StateDir.
	Socket string
}

// UninstallAll uninstalls again and again until nothing is left, not even state. Told to stop before, it leaves the binary, which
// does no harm; another run goes on. done reports whether nothing is left.
func (i *Installer) UninstallAll(ctx context.Context, log *slog.Logger, o UninstallOptions) (done bool, _ error) {
	var said []string
	for {
		pods, err := i.Uninstall()
		if err != nil {
			return false, err
		}
		if len(pods) == 0 {
			break
		}
		if !slices.Equal(pods, said) {
			log.Info("no new pod starts with detour; its binary stays until these pods have ended, as the runtime may call it for them", "event", "uninstall-waiting", "pods", pods)
			said = pods
		}
		if o.Once || stopped(ctx, o.Pause) {
			return false, nil
		}
	}
	if err := removeState(i.conf.StateDir, o.Socket); err != nil {
		return false, err
	}
	log.Info("detour is uninstalled from this node", "event", "uninstalled")
	return true, nil
}

// stopped waits, and reports whether the context ended meanwhile.
func stopped(ctx context.Context, pause time.Duration) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(pause):
		return false
	}
}

// removeState removes what the plugin and the agent have in their folder, and then the folder if it is empty and not a mount.
func removeState(dir, socket string) error {
	names := []string{"attachments", "namespaces"}
	if socket != "" {
		names = append(names, socket, socket+".*") // an agent that is killed leaves what it had not renamed yet
	}
	var failed error
	for _, name := range names {
		paths, _ := filepath.Glob(filepath.Join(dir, name))
		for _, path := range paths {
			failed = errors.Join(failed, hostfile.Advise(os.RemoveAll(path)))
		}
	}
	_ = os.Remove(dir)
	return failed
}

// dropEntries removes the entry from all lists.
func (i *Installer) dropEntries() error {
	names, err := i.regular()
	if err != nil {
		return err
	}
	var failed error
	for _, name := range names {
		if err := i.dropFrom(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", i.confPath(name), err))
		}
	}
	return failed
}

func (i *Installer) dropFrom(name string) error {
	n, err := readFile(i.conf.ConfDir, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !slices.Contains(extensions, filepath.Ext(name)) {
		return nil // another program's secret or archive, which the runtime does not read
	}
	if err != nil {
		return err
	}
	edited, err := dropDelegated(n, i.entry)
	if err != nil {
		return err
	}
	if _, noList := parseList(edited, i.entry.name); noList == nil {
		edited, err = dropEntry(edited, i.entry)
	}
	if err != nil || bytes.Equal(edited, n.text) {
		return err
	}
	return i.files.rewrite(n.path, edited, ownedBy(n.info), n.text)
}

// regular lists the folder's regular files. A link leads to one of them or to a file that is not ours.
func (i *Installer) regular() ([]string, error) {
	entries, err := os.ReadDir(i.conf.ConfDir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && !isTemp(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
