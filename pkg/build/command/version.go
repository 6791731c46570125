// Package command has the command `version` of detourctl and kubectl detour. It is apart from pkg/build so that the plugin is without
// cobra.
package command

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/build"
)

// Version prints the root command's version, as text or JSON.
func Version() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print this program's version and commit",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			switch out := c.OutOrStdout(); output {
			case "text":
				_, err = fmt.Fprintln(out, c.Root().DisplayName(), build.Get())
			case "json":
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				err = e.Encode(build.Get())
			default:
				err = fmt.Errorf("--output: %q is neither text nor json", output)
			}
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "output format: text or json")
	return c
}
