package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
)

// The pod in objects, and its proxy's ports.
const (
	podNamespace = "shop"
	podName      = "web-7d4b9c6f58-x2x9p"
	meshName     = "osm"
	podUID       = "0d6c1a52-8c0e-4f0b-9a57-3f1f5c7f2a01"
	proxyPort    = 15001
	inboundPort  = 15003
)

//go:embed objects
var objects embed.FS

// lab is what all measurements share.
type lab struct {
	bin, dir  string
	dialect   mesh.Dialect
	served    kube.Objects // as an API server stores them
	short     kube.Objects // as a user writes them
	serverURL string
	// absent says why a backend is missing.
	absent map[string]string
	plots  map[string]string // SVG by file name
	undo   []func() error
}

// newLab prepares everything except namespaces. The caller must Close it.
func newLab(ctx context.Context, bin string) (l *lab, err error) {
	l = &lab{bin: bin, absent: map[string]string{}, plots: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.dir, err = os.MkdirTemp("", "detour-bench-"); err != nil {
		return l, err
	}
	l.onClose(func() error { return os.RemoveAll(l.dir) })
	l.onClose(noneLeft)
	if err := l.mountState(); err != nil {
		return l, err
	}
	l.dialect, _ = mesh.Find(meshName)
	if l.served, err = l.unpack(ctx, "served.yaml"); err != nil {
		return l, err
	}
	if l.short, err = l.unpack(ctx, "short.yaml"); err != nil {
		return l, err
	}
	if err := l.startServers(ctx); err != nil {
		return l, err
	}
	for _, variant := range iptablesVariants {
		if err := l.tryIPTables(variant); err != nil {
			l.absent[variant] = err.Error()
		}
	}
	return l, l.writeFloors()
}

// mountState keeps the plugins' state in memory. On a node it is in /run, which is a tmpfs as well.
func (l *lab) mountState() error {
	if err := os.Mkdir(l.path("state"), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", l.path("state"), "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", l.path("state"), err)
	}
	l.onClose(func() error { return unix.Unmount(l.path("state"), unix.MNT_DETACH) })
	return nil
}

// unpack writes one of the embedded files to the lab's folder and returns its objects.
func (l *lab) unpack(ctx context.Context, name string) (kube.Objects, error) {
	data, err := objects.ReadFile("objects/" + name)
	if err != nil {
		return kube.Objects{}, err
	}
	if err := os.WriteFile(l.path(name), data, 0o600); err != nil {
		return kube.Objects{}, err
	}
	m, err := kube.NewManifests(l.path(name))
	if err != nil {
		return kube.Objects{}, err
	}
	return m.Lookup(ctx, kube.NewRequest(l.dialect, pod.ID{Namespace: podNamespace, Name: podName}))
}

// policy is what the mesh decides for the pod.
func (l *lab) policy() (redirect.OSM, error) {
	facts, err := pod.Parse(l.served.Pod)
	if err != nil {
		return redirect.OSM{}, err
	}
	decision, err := l.dialect.Decide(mesh.Input{Pod: facts, Config: l.served.Config})
	if err != nil {
		return redirect.OSM{}, err
	}
	policy, ok := decision.Policy.(redirect.OSM)
	if !ok {
		return redirect.OSM{}, fmt.Errorf("the pod is left alone: %s", decision.Skip)
	}
	return policy, nil
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) onClose(undo func() error) { l.undo = append(l.undo, undo) }

// Close takes everything down in reverse order.
func (l *lab) Close() error {
	var errs []error
	for _, undo := range slices.Backward(l.undo) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// noneLeft fails if a namespace was not closed.
func noneLeft() error {
	left, err := nettest.Leftovers()
	if len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return err
}

// present returns the names without those of absent backends.
func (l *lab) present(names ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return l.absent[name] != "" })
}

// missing returns a row for each absent backend.
func (l *lab) missing(number, what string) []row {
	var rows []row
	for _, backend := range backends {
		if why := l.absent[backend]; why != "" {
			rows = append(rows, row{number: number, what: what + backend, verdict: "not here: " + why})
		}
	}
	return rows
}

// tryIPTables fails if a variant of iptables is missing or does not work in a new namespace. It makes a folder that serves as
// a PATH with this variant only, which is also the default there.
func (l *lab) tryIPTables(variant string) error {
	folder := l.path(variant)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	for _, ip := range []string{"ip", "ip6"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			name := ip + strings.TrimPrefix(variant, "ip") + suffix
			path, err := exec.LookPath(name)
			if err != nil {
				return err
			}
			if err := errors.Join(os.Symlink(path, filepath.Join(folder, name)), os.Symlink(path, filepath.Join(folder, ip+"tables"+suffix))); err != nil {
				return err
			}
		}
	}
	ns, err := nettest.NewNamespace("try")
	if err != nil {
		return err
	}
	_, err = output(ns, filepath.Join(folder, "iptables"), "--wait", "-t", "nat", "-S")
	return errors.Join(err, ns.Close())
}

// output runs a program in a namespace and returns what it prints.
func output(ns *nettest.Namespace, program string, args ...string) (string, error) {
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(program, args...).Output()
		return explained(err)
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(program), err)
	}
	return string(out), nil
}

// explained adds what a program printed to its exit status.
func explained(err error) error {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(exit.Stderr)), " "))
	}
	return err
}
