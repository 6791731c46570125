package routes_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/routes"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// ip runs ip in the namespace and returns what it prints on standard output and on standard error.
func ip(t *testing.T, ns *nettest.Namespace, stdin string, args ...string) (stdout []byte, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	err := ns.Do(func() error {
		cmd := exec.Command("ip", args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ip %s: %v", strings.Join(args, " "), err)
	}
	return out.Bytes(), errs.String()
}

func must(t *testing.T, ns *nettest.Namespace, stdin string, args ...string) []byte {
	t.Helper()
	out, errs := ip(t, ns, stdin, args...)
	if errs != "" {
		t.Fatalf("ip %s: %s", strings.Join(args, " "), errs)
	}
	return out
}

// read reads all that ip lists in the namespace.
func read(t *testing.T, ns *nettest.Namespace) trace.Routing {
	t.Helper()
	rules := append(must(t, ns, "", "-j", "rule"), must(t, ns, "", "-6", "-j", "rule")...)
	r, err := routes.Read(must(t, ns, "", "-j", "route", "show", "table", "all"), must(t, ns, "", "-j", "address"), rules)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
