package command

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/build"
)

func run(args ...string) (string, error) {
	root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Version())
	var out strings.Builder
	root.SetOut(&out)
	root.SetArgs(append([]string{"version"}, args...))
	err := root.Execute()
	return out.String(), err
}

func TestVersionPrintsVersionAndCommit(t *testing.T) {
	if text, err := run(); err != nil || !strings.HasPrefix(text, "tool development (commit unknown, go1.") {
		t.Errorf("%q, %v", text, err)
	}
	text, err := run("-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	i := build.Get()
	if len(got) != 4 || got["version"] != i.Version || got["commit"] != i.Commit || got["go"] != i.Go || got["platform"] != i.Platform {
		t.Errorf("%s of %+v", text, i)
	}
	for _, args := range [][]string{{"-o", "yaml"}, {"pod/web"}} {
		if text, err := run(args...); err == nil {
			t.Errorf("%q gives %s", args, text)
		}
	}
}
