package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
)

// DefaultConfDir is where runtimes look for network configurations.
const DefaultConfDir = "/etc/cni/net.d"

// lookupTime bounds the lookup of one pod.
const lookupTime = 5 * time.Second

// source is detour's net confs on this node, and what they ask for pods.
type source struct {
	manifests string
	confs     []netconf.Conf
	absent    error // why there are none
	opened    map[string]kube.Source
	silent    map[string]error // what did not answer in time is not asked again
}

// newSource reads detour's entry in each file of the folder.
func newSource(dir, manifests string) *source {
	s := &source{manifests: manifests, opened: map[string]kube.Source{}, silent: map[string]error{}}
	files, err := os.ReadDir(dir)
	if err != nil {
		s.absent = fmt.Errorf("read detour's net conf: %w", err)
		return s
	}
	var invalid []error
	for _, f := range files {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name())) {
			continue
		}
		path := filepath.Join(dir, f.Name())
		conf, err := s.read(path)
		switch {
		case err != nil:
			invalid = append(invalid, fmt.Errorf("%s: %w", path, err))
		case conf.Dialect.Name != "":
			s.confs = append(s.confs, conf)
		}
	}
	if s.absent = errors.Join(invalid...); s.absent == nil {
		s.absent = fmt.Errorf("no file in %s has an entry of type %s", dir, netconf.Type)
	}
	return s
}

// read reads a file of the runtime's. The Conf is zero if detour is not in it.
func (s *source) read(path string) (netconf.Conf, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return netconf.Conf{}, err
	}
	entry, err := netconf.Entry(data)
	if err != nil || string(entry["type"]) != `"`+netconf.Type+`"` {
		return netconf.Conf{}, nil //nolint:nilerr // others' networks are not checked
	}
	return s.parse(entry)
}

func (s *source) parse(entry map[string]json.RawMessage) (netconf.Conf, error) {
	if s.manifests != "" {
		path, err := json.Marshal(s.manifests)
		if err != nil {
			return netconf.Conf{}, err
		}
		delete(entry, "agentSocket")
		delete(entry, "kubeconfig")
		entry["manifests"] = path
	}
	data, err := json.Marshal(entry)
	if err != nil {
		return netconf.Conf{}, err
	}
	return netconf.Parse(data)
}

// confOf returns the net conf by which the pod with this record was programmed; record may be nil. With manifests alone, it is
// the mesh's default.
func (s *source) confOf(record *attachment.Record) (netconf.Conf, error) {
	if record != nil {
		for _, same := range []func(netconf.Conf) bool{
			func(c netconf.Conf) bool { return c.Name == record.Network },
			func(c netconf.Conf) bool { return c.Dialect.Name == record.Mesh }, // the node agent's record has no network
		} {
			if i := slices.IndexFunc(s.confs, same); i >= 0 {
				return s.confs[i], nil
			}
		}
	}
	switch {
	case record != nil && s.manifests != "":
		mesh, err := json.Marshal(record.Mesh)
		if err != nil {
			return netconf.Conf{}, err
		}
		return s.parse(map[string]json.RawMessage{"mesh": mesh})
	case record == nil && len(s.confs) > 0:
		return s.confs[0], nil
	}
	return netconf.Conf{}, s.absent
}

// lookup gets the pod and its mesh's configuration from what the net conf names.
func (s *source) lookup(ctx context.Context, conf netconf.Conf, id pod.ID) (kube.Objects, error) {
	if err := s.silent[conf.Name]; err != nil {
		return kube.Objects{}, err
	}
	from, ok := s.opened[conf.Name]
	if !ok {
		var err error
		if from, err = kube.Open(conf.Manifests, conf.AgentSocket, conf.Kubeconfig); err != nil {
			s.silent[conf.Name] = err
			return kube.Objects{}, err
		}
		s.opened[conf.Name] = from
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	objects, err := from.Lookup(ctx, kube.NewRequest(conf.Dialect, id))
	if err != nil && ctx.Err() != nil {
		s.silent[conf.Name] = err
	}
	return objects, err
}
