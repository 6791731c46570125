package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/iptext"
)

// writeFloors writes what the floors program, the same rules as detour's: for each set of families a folder with the files 4
// and 6 for iptables-restore, and batch, the netlink messages for both.
func (l *lab) writeFloors() error {
	policy, err := l.policy()
	if err != nil {
		return err
	}
	rs := policy.Ruleset()
	for _, p := range []plugin{{v4only: true}, {v4only: false}} {
		if err := os.Mkdir(l.floorFolder(p), 0o700); err != nil {
			return err
		}
		files := map[string]string{}
		for f, save := range iptables.Compile(rs, p.families()) {
			files[fmt.Sprint(uint8(f))] = save.Restore(iptext.Save{})
		}
		files["batch"] = string(nftables.Compile(rs, p.families()).Batch())
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(l.floorFolder(p), name), []byte(content), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lab) floorFolder(p plugin) string {
	return l.path(fmt.Sprintf("floor-%d", len(p.families())))
}

// floorEnv tells a floor what to do.
func (l *lab) floorEnv(p plugin) []string {
	env := []string{
		"DETOUR_BENCH_SERVER=" + l.serverURL, "DETOUR_BENCH_POD=" + l.podPath(), "DETOUR_BENCH_CONFIG=" + l.configPath(),
		"DETOUR_BENCH_CA=" + l.path("ca.crt"), "DETOUR_BENCH_TOKEN=" + l.path("token"),
	}
	switch p.backend {
	case "": // it only prints
		return env
	case nftables.Name:
		return append(env, "DETOUR_BENCH_BATCH="+filepath.Join(l.floorFolder(p), "batch"))
	}
	return append(env, "DETOUR_BENCH_RULES="+l.floorFolder(p), "XTABLES_LOCKFILE=/proc/self/stat") // the host's lock may be held
}
