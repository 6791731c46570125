// Package doctor finds out what detour needs of a node and what the node lacks, before any pod meets it. It tries: with the backends'
// own code, in a network namespace of its own, which is gone afterwards. It changes nothing else.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/rules"
)

// Doctor says where to look.
type Doctor struct {
	ConfDir string // the runtime's folder of network configurations
	BinDir  string // the runtime's folder of plugins
	// StateDir counts if no net conf names one.
	StateDir string
	// Meshes are those to try if the node has no net conf; none stands for all.
	Meshes []string
	// RuntimePID is the process that starts the plugin; 0 looks for one.
	RuntimePID int
}

// Run looks at everything. It sets this process's PATH to the runtime's. The error is about the flags: what can't be found out is in
// the report.
func (d Doctor) Run(ctx context.Context) (Report, error) {
	var r Report
	if err := r.readKernel(); err != nil {
		return r, err
	}
	runtime, err := findRuntime(d.RuntimePID)
	r.Runtime = runtime
	if runtime != nil {
		if err := os.Setenv("PATH", runtime.Path); err != nil {
			return r, err
		}
	}
	r.Checks = append(r.Checks, checkRuntime(runtime, err), checkIPTables(ctx), checkConntrack())
	confs := r.lookAtFiles(d)
	for _, conf := range confs {
		r.Checks = append(r.Checks, checkSources(ctx, conf, time.Now())...)
	}
	plans, err := d.plans(confs)
	if err != nil {
		return r, err
	}
	families := rules.Families
	made := Check{Name: CheckNamespace, Result: Fine, Found: "network namespaces of its own, which are gone again"}
	// Each step has a new namespace: legacy iptables leaves empty tables, by which detour would choose.
	for _, step := range []func() error{
		func() error { families = r.lookAtIPv6(); return nil },
		func() (err error) { r.Trials, err = try(ctx, plans, families); return err },
		func() error { r.Features = findFeatures(ctx, families); return nil },
		func() error { judge(ctx, r.Features, plans, r.Trials); return nil },
	} {
		if err := netns.InNew(func() error { return errors.Join(loopbackUp(), step()) }); err != nil {
			made = Check{CheckNamespace, Unknown, err.Error(), "run detourctl as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN"}
			break
		}
	}
	r.Checks = append(r.Checks, made)
	return r.concluded(), nil
}

// lookAtIPv6 returns the families that can be tried.
func (r *Report) lookAtIPv6() []rules.Family {
	found, ok := checkIPv6()
	r.Checks = append(r.Checks, found)
	if !ok {
		return rules.Families[:1]
	}
	return rules.Families
}

func (r *Report) readKernel() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("ask for the kernel's release: %w", err)
	}
	r.Kernel = unix.ByteSliceToString(name.Release[:])
	return nil
}

// lookAtFiles returns the valid net confs of the list that the runtime loads, and of the others.
func (r *Report) lookAtFiles(d Doctor) []netconf.Conf {
	all, err := lists(d.ConfDir)
	r.Checks = append(r.Checks, checkList(d.ConfDir, all, err), checkFolder(CheckConfDir, d.ConfDir), checkFolder(CheckBinDir, d.BinDir))
	var confs []netconf.Conf
	stateDir := d.StateDir
	for _, l := range all {
		if l.entry == nil {
			continue
		}
		conf, err := l.netConf()
		r.Checks = append(r.Checks, answered(CheckNetConf, l.path, "correct it in ConfigMap detour", err))
		if err == nil {
			confs, stateDir = append(confs, conf), conf.StateDir
		}
	}
	r.Checks = append(r.Checks, checkStateDir(stateDir))
	if confs != nil {
		r.Checks = append(r.Checks, checkPlugin(d.BinDir))
	}
	return confs
}

func (d Doctor) plans(confs []netconf.Conf) ([]plan, error) {
	if len(d.Meshes) > 0 {
		return defaultPlans(d.Meshes)
	}
	if len(confs) == 0 {
		return defaultPlans(mesh.Names())
	}
	var all []plan
	for _, c := range confs {
		all = append(all, planOf(c))
	}
	return all, nil
}
