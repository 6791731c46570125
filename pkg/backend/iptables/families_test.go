package iptables

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// A host without ip6tables programs, checks and frees a pod that has no IPv6 address, and refuses one that has.
func TestAHostWithoutIp6tables(t *testing.T) {
	for _, v := range []Variant{Nft, Legacy} {
		t.Run(string(v), func(t *testing.T) {
			nettest.RequireProgram(t, "iptables-"+string(v)+"-restore")
			dir := t.TempDir()
			for _, program := range []string{"iptables", "iptables-restore", "iptables-save"} {
				target, err := exec.LookPath(strings.Replace(program, "iptables", "iptables-"+string(v), 1))
				if err != nil {
					t.Fatal(err)
				}
				if target, err = filepath.EvalSymlinks(target); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(target, filepath.Join(dir, program)); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir)
			if b, err := Detect(t.Context(), rules.Families...); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "ip6tables-restore") {
				t.Errorf("for both families: %v, %v", b, err)
			}
			rs := policy().Ruleset()
			own := Compile(rs, rules.Families[:1])
			ns := nettest.StartNamespace(t, "single")
			err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
				b, err := Detect(ctx, rules.IPv4)
				if err != nil {
					return err
				}
				err = errors.Join(b.Works(), b.Apply(ctx, lock, own, nil), b.Apply(ctx, lock, own, own))
				found, err2 := b.Differences(ctx, own)
				if len(found) > 0 {
					t.Error(found)
				}
				for _, b := range Installed(ctx) { // what may be there of either family
					err = errors.Join(err, b.Remove(ctx, lock, owned(rs)))
				}
				left, err3 := b.Differences(ctx, own)
				if len(left) != 6 { // four chains and two jumps
					t.Errorf("%d differences after the removal: %q", len(left), left)
				}
				return errors.Join(err, err2, err3)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
