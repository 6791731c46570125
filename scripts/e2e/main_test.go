//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/cluster"
	"github.com/detour-cni/detour/scripts/e2e/image"
	"github.com/detour-cni/detour/scripts/e2e/machine"
)

// kubernetes is the cluster of all cases, which keep apart by namespaces.
var kubernetes interface {
	// Kubectl returns a kubectl command of the administrator; its files are this host's.
	Kubectl(ctx context.Context, args ...string) *exec.Cmd
	// Client returns a command of another program that finds the cluster by KUBECONFIG.
	Client(ctx context.Context, program string, args ...string) *exec.Cmd
	// Shell returns a command that runs a script as root on the node, which has bash and ctr.
	Shell(ctx context.Context, script string) *exec.Cmd
}

// The images of the pods. They are on the node: imagePullPolicy is Never.
const (
	workloadImage = "detour.test/workload:1"
	iptablesImage = "detour.test/iptables:1"
)

func TestMain(m *testing.M) {
	if machine.IsInit() {
		os.Exit(machine.Init())
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if node := os.Getenv("DETOUR_E2E_KIND_NODE"); node != "" {
		kubernetes = kind{filepath.Join(folder("PROGRAMS"), "kubectl"), folder("KUBECONFIG"), node}
		if err := importImages(ctx); err != nil {
			return fail(err)
		}
		return m.Run()
	}
	c, err := cluster.Start(ctx, cluster.Options{
		Dir:      folder("WORK"),
		Programs: folder("PROGRAMS"),
		Plugins:  folder("PLUGINS"),
		Pause:    filepath.Join(folder("BIN"), "workload"),
		Log:      os.Stdout,
	})
	if err != nil {
		return fail(err)
	}
	kubernetes = c
	defer func() {
		fmt.Println("memory of the components:", c.Memory())
		if err := c.Stop(); err != nil {
			code = fail(err)
		}
	}()
	if err := importImages(ctx); err != nil {
		return fail(err)
	}
	// A test ends with the process. What a signal interrupts has to end before the cluster is stopped.
	done := make(chan int, 1)
	go func() { done <- m.Run() }()
	select {
	case code = <-done:
		return code
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
}

func fail(err error) int {
	fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
	return 1
}

// folder is one of those that scripts/e2e.sh provides.
func folder(name string) string { return os.Getenv("DETOUR_E2E_" + name) }

// importImages makes the images of the pods out of our programs and, for the init container that a mesh would have, of
// the host's iptables.
func importImages(ctx context.Context) error {
	if err := image.Import(kubernetes.Shell(ctx, image.ImportScript), workload()); err != nil {
		return err
	}
	iptables, err := iptablesFiles()
	if err != nil {
		return err
	}
	return image.Import(kubernetes.Shell(ctx, image.ImportScript), image.Image{Name: iptablesImage, Files: iptables})
}

func workload() image.Image {
	return image.Image{
		Name:       workloadImage,
		Files:      []image.File{{Path: "/workload", From: filepath.Join(folder("BIN"), "workload")}},
		Entrypoint: []string{"/workload"},
	}
}

func iptablesFiles() ([]image.File, error) {
	files, err := image.Program("/usr/sbin/xtables-nft-multi")
	if err != nil {
		return nil, err
	}
	shell, err := image.Program("/bin/busybox")
	if err != nil {
		return nil, err
	}
	extensions, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || extensions == nil {
		return nil, fmt.Errorf("find the extensions of iptables: %w", os.ErrNotExist)
	}
	for _, path := range extensions {
		files = append(files, image.File{Path: path, From: path})
	}
	return append(append(files, shell...),
		image.File{Path: "/bin/sh", Link: "busybox"},
		image.File{Path: "/usr/sbin/iptables-restore", Link: "xtables-nft-multi"},
		image.File{Path: "/usr/sbin/ip6tables-restore", Link: "xtables-nft-multi"},
	), nil
}
