//go:build kernels

package kernels

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/doctor"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

const root = "../.."

// programs are where guest.sh puts detour's.
const programs = "/detour/programs/"

func TestMain(m *testing.M) {
	if os.Getenv("DETOUR_KERNEL") == "" {
		fmt.Fprintln(os.Stderr, "these tests unload modules: scripts/kernels.sh runs them in a kernel of their own")
		os.Exit(1)
	}
	os.Exit(nettest.Main(m))
}

// examine runs detourctl doctor for one mesh.
func examine(t *testing.T, mesh string) doctor.Report {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(programs+"detourctl", "doctor", "--mesh", mesh, "-o", "json")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r doctor.Report
	if json.Unmarshal(out, &r) != nil {
		t.Fatalf("detourctl doctor: %v: %s%s", err, out, &stderr)
	}
	return r
}

// build is the ruleset of a case of testdata, and the families that it programs.
func build(t *testing.T, name string) (testcase.Case, rules.Ruleset, []rules.Family) {
	t.Helper()
	c := testcase.Find(t, root, name)
	d, err := c.Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	return c, d.Policy.Ruleset(), d.Families
}

// names of features, each once, for a message.
func names(missing []doctor.Feature) string {
	var out []string
	for _, f := range missing {
		out = append(out, fmt.Sprintf("%s (%s, %s)", f.Name, f.Family, f.Error))
	}
	return strings.Join(out, "; ")
}
