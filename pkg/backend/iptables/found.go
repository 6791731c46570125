package iptables

import (
	"context"
	"os/exec"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/rules"
)

// Found is one of iptables' programs on PATH.
type Found struct {
	Name    string
	Path    string
	Version string // in the program's words
	Err     error  // why it has none
}

// versionPatience bounds how long a program may take to say its version.
const versionPatience = 3 * time.Second

// Find lists the programs on PATH that restore tables, of either family and by any of their names. It starts each.
func Find(ctx context.Context) []Found {
	var all []Found
	for _, f := range rules.Families {
		for _, suffix := range []string{"", "-" + string(Nft), "-" + string(Legacy)} {
			name := prefix(f) + "tables" + suffix + "-restore"
			if path, err := exec.LookPath(name); err == nil {
				all = append(all, asked(ctx, Found{Name: name, Path: path}))
			}
		}
	}
	return all
}

func asked(ctx context.Context, f Found) Found {
	ctx, cancel := context.WithTimeout(ctx, versionPatience)
	defer cancel()
	out, err := versionOf(ctx, f.Path)
	f.Version, f.Err = strings.TrimSpace(out), err
	return f
}
