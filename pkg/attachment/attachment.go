// Package attachment records what ADD did for each CNI attachment, for CHECK, DEL, GC and detourctl.
package attachment

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/hostfile"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// Outcome is what became of an ADD: in records, log lines, reports to the agent and metrics.
type Outcome string

// The outcomes.
const (
	Programmed Outcome = "programmed"
	Skipped    Outcome = "skipped" // the mesh does not want the pod
	Allowed    Outcome = "allowed" // it could not be programmed, and runs unmeshed because the net conf says so
	Failed     Outcome = "failed"  // the pod does not start; no record says so
)

// Outcomes are all of them.
var Outcomes = []Outcome{Programmed, Skipped, Allowed, Failed}

// Key identifies an attachment, by the CNI specification's rules.
type Key struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// RepairKey is the key of the node agent's record of a pod that was started without detour. Only the runtime knows which
// attachment of which network the pod has. uid is the pod's.
func RepairKey(uid, ifName string) Key { return Key{RepairNetwork, uid, ifName} }

// RepairNetwork is the network of all repair keys.
const RepairNetwork = "detour-repair"

// Record is what ADD did for one attachment, or is about to do: it is written ahead, so that nothing is programmed without a
// record.
type Record struct {
	Key
	Netns string `json:"netns"`
	// NamespaceID identifies the network namespace while it lives. Its lock file has this name.
	NamespaceID string  `json:"namespaceID,omitempty"`
	Pod         string  `json:"pod,omitempty"` // NAMESPACE/NAME
	PodUID      string  `json:"podUID,omitempty"`
	Mesh        string  `json:"mesh"`
	Outcome     Outcome `json:"outcome"`
	Reason      string  `json:"reason,omitempty"` // why it was skipped or allowed
	Backend     string  `json:"backend,omitempty"`
	// Families are those that were programmed.
	Families []rules.Family `json:"families,omitempty"`
	// Payload says what the backend programmed. Only that backend reads it.
	Payload json.RawMessage `json:"payload,omitempty"`
	// Setup is what was set up besides rules for each of the families.
	Setup rules.Setup `json:"setup,omitzero"`
	// Stale is what the namespace may still hold from earlier ADDs, until this one has replaced it.
	Stale []Record `json:"stale,omitempty"`
	// Asked is what was decided, by what asked for it. Records of earlier versions don't have it.
	Asked []redirect.Asked `json:"asked,omitempty"`
	// Addresses are those of this attachment alone.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Time is when the attachment was added first.
	Time time.Time `json:"time"`
}

// UnmarshalJSON also reads the records of earlier versions, which had a field for each backend's payload.
func (r *Record) UnmarshalJSON(data []byte) error {
	type current Record
	var old struct {
		*current
		Rules json.RawMessage `json:"rules"` // iptables'
		Table json.RawMessage `json:"table"` // nftables'
	}
	old.current = (*current)(r)
	if err := json.Unmarshal(data, &old); err != nil {
		return err
	}
	if r.Payload == nil {
		r.Payload = slices.Concat(old.Rules, old.Table) // one of the two
	}
	return nil
}

// Traces are what the namespace may hold according to this record: what was programmed, and what it was meant to replace.
func (r Record) Traces() []Record {
	var out []Record
	if len(r.Families) > 0 {
		out = append(out, Record{Backend: r.Backend, Families: r.Families, Payload: r.Payload, Setup: r.Setup})
	}
	for _, s := range r.Stale {
		out = append(out, s.Traces()...)
	}
	return out
}

// Addresses returns the addresses of all these attachments, in the order of their first ADDs.
func Addresses(all []Record) []netip.Addr {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Record) int { return a.Time.Compare(b.Time) })
	var out []netip.Addr
	for _, r := range all {
		for _, a := range r.Addresses {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// ToRepair decides from all records of a pod whether to repair it: yes if it has none, or if ADD let it start unmeshed and no
// ADD for another interface programmed it. The repair overwrites old, if old has a key, so that the attachment's CHECK and DEL
// find its record.
func ToRepair(ofPod []Record) (old Record, repair bool) {
	find := func(o Outcome) int { return slices.IndexFunc(ofPod, func(r Record) bool { return r.Outcome == o }) }
	if len(ofPod) == 0 {
		return Record{}, true
	}
	if i := find(Allowed); i >= 0 && find(Programmed) < 0 {
		return ofPod[i], true
	}
	return Record{}, false
}

// Store is a folder of records, one file each.
type Store struct{ dir string }

// NewStore returns the store under the state folder, which need not exist yet.
func NewStore(stateDir string) Store { return Store{filepath.Join(stateDir, "attachments")} }

// path keeps networks apart by folder. "@" can't be part of a container ID.
func (s Store) path(k Key) string {
	return filepath.Join(s.dir, k.Network, k.ContainerID+"@"+k.IfName+".json")
}

// tempSuffix marks a file that is being written. The next writer overwrites what a killed one left.
const tempSuffix = ".tmp"

// Prepare makes the folder for a network's records.
func (s Store) Prepare(network string) error {
	if err := os.MkdirAll(filepath.Join(s.dir, network), 0o700); err != nil {
		return fmt.Errorf("make state folder: %w", hostfile.Advise(err))
	}
	return nil
}

// Writable says why no record could be saved now. It is idempotent, and leaves nothing behind unless it is killed; then the next
// one does.
func (s Store) Writable() error {
	if err := s.Prepare(""); err != nil {
		return err
	}
	path := filepath.Join(s.dir, "probe"+tempSuffix)
	return errors.Join(write(path, make([]byte, 4<<10)), remove(path))
}

// Save writes the record, whole or not at all. An attachment must have one writer at a time.
func (s Store) Save(r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save attachment state: %w", err)
	}
	path := s.path(r.Key)
	err = write(path+tempSuffix, data)
	if errors.Is(err, fs.ErrNotExist) { // the network's first
		if err := s.Prepare(r.Network); err != nil {
			return err
		}
		err = write(path+tempSuffix, data)
	}
	if err == nil {
		err = saved(os.Rename(path+tempSuffix, path))
	}
	if err != nil {
		_ = os.Remove(path + tempSuffix) // a disk that is full must not stay so for our sake
	}
	return err
}

func write(path string, data []byte) error { return saved(os.WriteFile(path, data, 0o600)) }

func saved(err error) error {
	if err != nil {
		return fmt.Errorf("save attachment state: %w", hostfile.Advise(err))
	}
	return nil
}

// maxRecord is the size in bytes of the largest record to load. The longest lists that a pod's annotations can hold make a tenth.
const maxRecord = 16 << 20

// Load reads a record; the error is fs.ErrNotExist if there is none.
func (s Store) Load(k Key) (Record, error) { return load(s.path(k)) }

func load(path string) (Record, error) {
	data, err := hostfile.Read(path, maxRecord)
	if err != nil {
		return Record{}, fmt.Errorf("load attachment state: %w", hostfile.Advise(err))
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("load attachment state %s: %w", path, err)
	}
	if !slices.Contains(Outcomes, r.Outcome) {
		return Record{}, fmt.Errorf("load attachment state %s: outcome %q is none that this version of detour knows", path, r.Outcome)
	}
	return r, nil
}

// Of returns all records of a container in all networks, and the node agent's of the pod with this UID, if that is not empty;
// the oldest first. An unreadable record is returned with its key alone.
func (s Store) Of(containerID, uid string) ([]Record, error) {
	networks, err := names(s.dir)
	if err != nil {
		return nil, err
	}
	var records []Record
	for _, network := range networks {
		id := containerID
		if network == RepairNetwork {
			id = uid
		}
		files, err := names(filepath.Join(s.dir, network))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			ifName, ok := strings.CutPrefix(file, id+"@")
			ifName, whole := strings.CutSuffix(ifName, ".json")
			if id == "" || !ok || !whole {
				continue
			}
			k := Key{network, id, ifName}
			r, err := s.Load(k)
			switch {
			case err == nil:
				r.Key = k
				records = append(records, r)
			case !errors.Is(err, fs.ErrNotExist):
				records = append(records, Record{Key: k})
			}
		}
	}
	slices.SortStableFunc(records, func(a, b Record) int { return a.Time.Compare(b.Time) })
	return records, nil
}

// names lists a folder, which need not exist. It doesn't sort, as an ADD waits for it.
func names(dir string) ([]string, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attachment state: %w", hostfile.Advise(err))
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list attachment state: %w", hostfile.Advise(err))
	}
	return names, nil
}

// Delete removes a record; it is no error if there is none.
func (s Store) Delete(k Key) error {
	path := s.path(k)
	return errors.Join(remove(path+tempSuffix), remove(path))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete attachment state: %w", hostfile.Advise(err))
	}
	return nil
}

// All visits every record of every network, with the error if it can't be loaded. It leaves out records that are
// deleted at the same time or not written yet.
func (s Store) All(visit func(Record, error)) error {
	networks, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list attachment state: %w", hostfile.Advise(err))
	}
	for _, network := range networks {
		if !network.IsDir() {
			continue
		}
		keys, err := s.Keys(network.Name())
		if err != nil {
			return err
		}
		for _, k := range keys {
			if r, err := s.Load(k); !errors.Is(err, fs.ErrNotExist) {
				visit(r, err)
			}
		}
	}
	return nil
}

// Keys lists a network's records and what interrupted writers left; none if the network is unknown.
func (s Store) Keys(network string) ([]Key, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, network))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list attachment state: %w", hostfile.Advise(err))
	}
	var keys []Key
	for _, f := range files {
		name, ok := strings.CutSuffix(strings.TrimSuffix(f.Name(), tempSuffix), ".json")
		id, ifName, sep := strings.Cut(name, "@")
		if ok && sep {
			keys = append(keys, Key{network, id, ifName})
		}
	}
	return keys, nil
}
