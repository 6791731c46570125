package image

import (
	"fmt"
	"os/exec"
	"strings"
)

// ImportScript is what imports, on a node, the image on its standard input, for pods with imagePullPolicy Never.
const ImportScript = "ctr --namespace k8s.io images import -"

// Import gives the image to a command that runs ImportScript.
func Import(cmd *exec.Cmd, i Image) error {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("import image %s: %w", i.Name, err)
	}
	writeErr := i.Write(stdin)
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("import image %s: %w: %s", i.Name, err, out.String())
	}
	return writeErr
}
