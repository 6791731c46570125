// Package install keeps detour installed on a node: the plugin's binary, its credentials and its entry in the network's
// configuration list. It writes each file whole or not at all, and leaves alone what is right.
//
// Only one Installer should work on a node. Two do no harm, but each may find that the other has changed a file.
package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// Names of the files with credentials, in the folder of network configurations. The runtime ignores names like these.
const (
	KubeconfigName = "detour-kubeconfig"
	TokenName      = "detour-token"
)

// Config says what is installed and where. All folders are the host's, as mounted into the agent; they must exist.
type Config struct {
	// Plugin is the binary inside the image.
	Plugin string
	// BinDir is the runtime's folder of plugins. The binary's name there is the entry's type.
	BinDir string
	// ConfDir is the runtime's folder of network configurations.
	ConfDir string
	// Entry is the plugin's entry for the list of plugins, an object with a type. The order of its keys stays.
	Entry json.RawMessage
	// Kubeconfig is nil if no credential may be on the host; an old one is then removed.
	Kubeconfig *Kubeconfig
	// StateDir is the plugin's; libcni keeps its attachments in CacheDir. Only Uninstall needs them.
	StateDir, CacheDir string
}

// Kubeconfig says how the plugin reaches the API server.
type Kubeconfig struct {
	// HostDir is ConfDir as the host sees it, for the path inside the kubeconfig.
	HostDir string
	Server  string
	// CAFile and TokenFile are the projected files in the agent's pod; when they change, so do their copies on the host. Without
	// a CAFile, the plugin trusts the system's authorities.
	CAFile, TokenFile string
}

// Part is a part of the installation.
type Part string

// The parts.
const (
	PartKubeconfig Part = "kubeconfig"
	PartToken      Part = "token"
	PartBinary     Part = "binary"
	PartConflist   Part = "conflist"
)

// Change is a file that was written or removed.
type Change struct {
	Part Part
	File string
	// Reason is what was wrong with the file, as half a sentence.
	Reason string
	// Rival is how often the file was restored lately because another program had changed it. Only Run counts.
	Rival int
}

// Result is what a Reconcile found and did.
type Result struct {
	// Network is the network that the runtime uses, Conflist its file; both are empty if there is none.
	Network  string
	Conflist string
	Changes  []Change
}

// ErrNoNetwork says that the runtime has no usable network configuration. The installer waits for one and never makes it.
var ErrNoNetwork = errors.New("no valid network configuration")

// Installer installs and uninstalls. It is safe for concurrent use.
type Installer struct {
	conf  Config
	entry entry
	files files
	pace  pace

	mu       sync.Mutex
	cleaned  bool
	compared [2]identity // the plugin and its installed copy when they were found to be equal
}

// New checks the configuration. It touches nothing.
func New(c Config) (*Installer, error) {
	i := &Installer{conf: c, pace: defaultPace}
	var err error
	if i.entry, err = newEntry(c.Entry); err != nil {
		return nil, fmt.Errorf("plugin entry: %w", err)
	}
	if c.BinDir == "" || c.ConfDir == "" {
		return nil, errors.New("folders of plugins and network configurations: both are needed")
	}
	if k := c.Kubeconfig; k != nil && (k.HostDir == "" || k.Server == "" || k.TokenFile == "") {
		return nil, errors.New("kubeconfig: the host's folder, the server and the token file are all needed")
	}
	return i, nil
}

// Reconcile makes the host what the configuration says: credentials, then the binary, then the list of plugins, so that
// the runtime never loads a list whose plugin can't run. If a part fails and the host has an older version of it, Reconcile goes
// on: a pod that fails to start is better than one that starts unmeshed. The error is ErrNoNetwork if that is all that is missing.
// It is idempotent, and writes nothing if there is nothing to change.
func (i *Installer) Reconcile() (Result, error) { return i.reconcile(nil) }

func (i *Installer) reconcile(rivals *rivals) (Result, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.cleaned {
		if err := i.clean(); err != nil {
			return Result{}, err
		}
	}
	r := &round{rivals: rivals}
	err := i.install(r)
	i.cleaned = err == nil // what failed may not even have removed its temporary file
	if i.conf.Kubeconfig == nil {
		// last, as an older entry may refer to them, and after whatever error
		err = errors.Join(err, i.removeCredentials(r))
	}
	return r.Result, err
}

func (i *Installer) install(r *round) error {
	var failed error
	if i.conf.Kubeconfig != nil {
		present, err := i.credentials(r)
		if err != nil && !present {
			return err
		}
		failed = err
	}
	present, err := i.binary(r)
	failed = errors.Join(failed, err)
	if err != nil && !present {
		return failed
	}
	return errors.Join(failed, i.conflist(r))
}

// clean removes what killed runs left.
func (i *Installer) clean() error {
	return errors.Join(i.files.clean(i.conf.ConfDir), i.files.clean(i.conf.BinDir))
}

// binaryPath is where the runtime looks for the plugin.
func (i *Installer) binaryPath() string { return filepath.Join(i.conf.BinDir, i.entry.name) }

func (i *Installer) confPath(name string) string { return filepath.Join(i.conf.ConfDir, name) }

// round is one Reconcile.
type round struct {
	Result
	rivals *rivals
}

// ensure calls write if something is wrong with a part's file, unless rivals make it wait. If want has changed, the file was not
// changed by another program.
func (r *round) ensure(part Part, file, want, wrong string, write func() error) error {
	if wrong == "" {
		r.rivals.right(part, want)
		return nil
	}
	if err := r.rivals.blocked(part, file, want); err != nil {
		return err
	}
	if err := write(); err != nil {
		return fmt.Errorf("install %s %s: %w", part, file, hostfile.Advise(err))
	}
	r.Changes = append(r.Changes, Change{part, file, wrong, r.rivals.answered(part, want)})
	return nil
}

// entry is the plugin's entry in a list of plugins.
type entry struct {
	name  string // its type
	text  []byte // compact, in its own order
	value any
}

func newEntry(text []byte) (entry, error) {
	var conf types.PluginConf
	if err := json.Unmarshal(text, &conf); err != nil {
		return entry{}, err
	}
	if name := conf.Type; name == "" || name != filepath.Base(name) || name == "." || name == ".." {
		return entry{}, fmt.Errorf("type: %q is not the name of a plugin", name)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return entry{}, err
	}
	value, err := decode(text)
	return entry{conf.Type, compact.Bytes(), value}, err
}
