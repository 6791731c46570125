// Command chart writes the templates of the Helm chart deploy/helm/detour that say what deploy/'s kustomizations say. It runs in
// the repository's root and takes the path of kustomize, see scripts/chart.sh.
//
// It builds the first mesh's overlay, then once more for each other mesh and each component, and compares the texts: the lines
// that a mesh or a component changes or adds become conditional. What only Helm has, such as the net conf and the hook that
// uninstalls, is written by hand.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// templates is the folder of the chart's templates.
const templates = "deploy/helm/detour/templates"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "chart: want the path of kustomize: run make chart")
		return 2
	}
	files, err := generate(kustomize{program: args[0], root: "."})
	if err != nil {
		fmt.Fprintln(os.Stderr, "chart: "+err.Error())
		return 1
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(templates, name), []byte(text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "chart: write a template: "+err.Error())
			return 1
		}
	}
	return 0
}
