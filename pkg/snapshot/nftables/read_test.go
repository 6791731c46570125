package nftables_test

import (
	"os"
	"path/filepath"
	"testing"
)

// Each file holds rules that stand for a kind of statement, or for what a program leaves on a node.
func TestReadSaysWhatNftSays(t *testing.T) {
	files, err := filepath.Glob("testdata/*.nft")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			rules, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ns := start(t, "read")
			run(t, ns, "", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
			run(t, ns, string(rules), "nft", "-f", "-")
			judge(t, ns)
		})
	}
}
