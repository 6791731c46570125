package nftables_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/snapshot/nftables"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// start is nettest.StartNamespace for a test that needs nft.
func start(t *testing.T, name string) *nettest.Namespace {
	t.Helper()
	nettest.RequireProgram(t, "nft")
	return nettest.StartNamespace(t, name)
}

// run runs a program in the namespace and returns what it prints.
func run(t *testing.T, ns *nettest.Namespace, stdin string, args ...string) []byte {
	t.Helper()
	out, err := tryRun(ns, stdin, args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return out
}

func tryRun(ns *nettest.Namespace, stdin string, args ...string) (out []byte, err error) {
	err = ns.Do(func() (err error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return err
	})
	return out, err
}

func read(t *testing.T, ns *nettest.Namespace, skip func(family, table string) bool) (listing []byte) {
	t.Helper()
	err := ns.Do(func() (err error) {
		listing, err = nftables.Read(skip)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return listing
}

// parse returns the listing's objects but the first, which says what wrote it.
func parse(t *testing.T, listing []byte) []any {
	t.Helper()
	var root struct{ Nftables []any }
	if err := json.Unmarshal(listing, &root); err != nil {
		t.Fatalf("%v in %s", err, listing)
	}
	return root.Nftables[1:]
}

func text(t *testing.T, v any) string {
	t.Helper()
	b := &bytes.Buffer{}
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// judge compares what Read says with what nft says, but for what is not exact in nft's objects.
func judge(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	want, got := parse(t, run(t, ns, "", "nft", "-j", "list", "ruleset")), parse(t, read(t, ns, nil))
	if len(want) != len(got) {
		t.Errorf("nft lists %d objects, Read %d", len(want), len(got))
	}
	for i := range min(len(want), len(got)) {
		mend(want[i], got[i])
		withoutExpiry(want[i])
		withoutExpiry(got[i])
		if !reflect.DeepEqual(want[i], got[i]) {
			t.Errorf("object %d is\n%sand nft says\n%s", i, text(t, got[i]), text(t, want[i]))
		}
	}
}

// mend copies into nft's object what nft 1.0.6 leaves out or says wrong: a chain's devices, and a table's flag, which it
// reads from memory that it has freed. In a concatenation it cuts a field out and shifts it nevertheless.
func mend(want, got any) {
	copyMember(want, got, "chain", "dev")
	copyMember(want, got, "table", "flags")
	unshift(want)
}

func copyMember(to, from any, kind, key string) {
	target, _ := to.(map[string]any)[kind].(map[string]any)
	source, _ := from.(map[string]any)[kind].(map[string]any)
	if value, ok := source[key]; ok && target != nil {
		target[key] = value
	}
}

// withoutExpiry leaves out what passes.
func withoutExpiry(v any) {
	switch v := v.(type) {
	case []any:
		for i := range v {
			withoutExpiry(v[i])
		}
	case map[string]any:
		delete(v, "expires")
		for key := range v {
			withoutExpiry(v[key])
		}
	}
}

func unshift(v any) {
	switch v := v.(type) {
	case []any:
		for i := range v {
			unshift(v[i])
		}
	case map[string]any:
		for key := range v {
			unshift(v[key])
		}
		parts, _ := v["concat"].([]any)
		for i, part := range parts {
			parts[i] = unshifted(part)
		}
	}
}

func unshifted(part any) any {
	shift, _ := part.(map[string]any)
	operands, _ := shift[">>"].([]any)
	if len(operands) != 2 {
		return part
	}
	field, _ := operands[0].(map[string]any)
	if _, isField := field["payload"]; !isField {
		return part
	}
	return field
}
