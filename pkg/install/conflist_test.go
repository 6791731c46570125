package install

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// TestNetworks installs beside real configurations, compares to the byte, looks that nothing is written a second time,
// and uninstalls.
func TestNetworks(t *testing.T) {
	cases, err := filepath.Glob("testdata/networks/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatal(err, cases)
	}
	for _, path := range cases {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		for lineEnds, convert := range map[string]func(string) string{
			"LF":   func(s string) string { return s },
			"CRLF": func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		} {
			t.Run(name+"/"+lineEnds, func(t *testing.T) {
				before, after := map[string]string{}, map[string]string{}
				for _, f := range archive.Files {
					file := filepath.Base(f.Name)
					if strings.HasPrefix(f.Name, "before/") {
						before[file] = convert(string(f.Data))
					}
				}
				for _, f := range archive.Files {
					file, text := filepath.Base(f.Name), string(f.Data)
					if _, was := before[file]; was {
						text = convert(text) // a list that we make has our line ends
					} else {
						text = strings.TrimSuffix(text, "\n") + "\n"
					}
					if strings.HasPrefix(f.Name, "after/") {
						after[file] = text
					}
				}
				testNetwork(t, before, after)
			})
		}
	}
}

func testNetwork(t *testing.T, before, after map[string]string) {
	w := newWorld(t, before)
	w.reconcile()
	w.wantFiles(after)
	then := stamps(t, w.ConfDir, w.BinDir)
	if r := w.reconcile(); len(r.Changes) > 0 {
		t.Errorf("the second time, there were changes: %v", r.Changes)
	}
	if now := stamps(t, w.ConfDir, w.BinDir); !maps.Equal(now, then) {
		t.Errorf("the second time, files were touched:\n%v\n%v", now, then)
	}
	for range 2 {
		w.uninstall()
		diff(t, contents(t, w.ConfDir), before)
		diff(t, contents(t, w.BinDir), nil)
	}
}

func mustEntry(tb testing.TB, text string) entry {
	tb.Helper()
	e, err := newEntry([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func TestSetEntry(t *testing.T) {
	e := mustEntry(t, `{"type": "detour", "b": 1, "a": 9007199254740993}`)
	const ours = `{"type":"detour","b":1,"a":9007199254740993}`
	for _, c := range []struct{ name, before, after string }{
		{"right in another style", `{"name": "x", "plugins": [{"type": "p"}, { "a": 9007199254740993, "b": 1, "type": "detour"}]}`, ""},
		{"right in the middle", `{"name": "x", "plugins": [{"type": "p"}, ` + ours + `, {"type": "q"}]}`, ""},
		{"older keeps its place", `{"name": "x", "plugins": [{"type": "p"}, {"type": "detour"}, {"type": "q"}]}`,
			`{"name": "x", "plugins": [{"type": "p"}, ` + ours + `, {"type": "q"}]}`},
		{"a number that a float can't tell from ours", `{"name": "x", "plugins": [{"type": "p"}, {"type":"detour","b":1,"a":9007199254740992}]}`,
			`{"name": "x", "plugins": [{"type": "p"}, ` + ours + `]}`},
		{"more fields than ours", `{"name": "x", "plugins": [{"type": "p"}, {"type":"detour","b":1,"a":9007199254740993,"onError":"allow"}]}`,
			`{"name": "x", "plugins": [{"type": "p"}, ` + ours + `]}`},
		{"older on its own lines", "{\"name\": \"x\", \"plugins\": [\n\t{\"type\": \"p\"},\n\t{\n\t    \"type\": \"detour\"\n\t}\n]}",
			"{\"name\": \"x\", \"plugins\": [\n\t{\"type\": \"p\"},\n\t{\n\t    \"type\": \"detour\",\n\t    \"b\": 1,\n\t    \"a\": 9007199254740993\n\t}\n]}"},
		{"duplicates", `{"name": "x", "plugins": [{"type": "detour"},  {"type": "p"}, {"type": "detour"} , {"type": "detour"}, {"type": "q"}]}`,
			`{"name": "x", "plugins": [` + ours + `,  {"type": "p"}, {"type": "q"}]}`},
		{"duplicates of the right one", `{"name": "x", "plugins": [{"type": "p"}, ` + ours + `, ` + ours + `]}`,
			`{"name": "x", "plugins": [{"type": "p"}, ` + ours + `]}`},
		{"libcni's idea of a key", `{"name": "x", "plugins": [{"type": "p"}, {"TYPE": "detour"}]}`,
			`{"name": "x", "plugins": [{"type": "p"}, ` + ours + `]}`},
		{"two lists: the last counts", `{"plugins": [{"type": "old"}], "name": "x", "plug\u0069ns": [{"type": "p"}], "z": {"plugins": []}}`,
			`{"plugins": [{"type": "old"}], "name": "x", "plug\u0069ns": [{"type": "p"},` + ours + `], "z": {"plugins": []}}`},
		{"spaces at the brackets", `{"name": "x", "plugins": [ {"type": "p"} ]}`, `{"name": "x", "plugins": [ {"type": "p"}, ` + ours + ` ]}`},
		{"a comma at the line's head", "{\"name\": \"x\", \"plugins\": [\n  {\"type\": \"p\"}\n, {\"type\": \"q\"}\n]}",
			"{\"name\": \"x\", \"plugins\": [\n  {\"type\": \"p\"}\n, {\"type\": \"q\"}\n, " + ours + "\n]}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.after == "" {
				c.after = c.before
			}
			got, err := setEntry([]byte(c.before), e)
			if err != nil || string(got) != c.after {
				t.Errorf("got %v\n%s\nwant\n%s", err, got, c.after)
			}
		})
	}
}

func TestDropEntry(t *testing.T) {
	const a, b = `{"type": "detour"}`, `{"type": "detour", "x": 1}`
	for _, c := range []struct{ before, after string }{
		{`[{"type": "p"}]`, `[{"type": "p"}]`},
		{`[` + a + `,  {"type": "p"}]`, `[{"type": "p"}]`},
		{`[` + a + `,` + b + `  ,   {"type": "p"} ,{"type": "q"}]`, `[{"type": "p"} ,{"type": "q"}]`},
		{`[` + a + `,` + b + `  ,   {"type": "p"} , ` + a + `]`, `[{"type": "p"}]`},
		{`[ {"type": "p"} , ` + a + `,` + b + `, {"type": "q"} ]`, `[ {"type": "p"}, {"type": "q"} ]`},
	} {
		list := func(plugins string) string { return `{"name": "x", "plugins": ` + plugins + `}` }
		got, err := dropEntry([]byte(list(c.before)), mustEntry(t, ourEntry))
		if err != nil || string(got) != list(c.after) {
			t.Errorf("%s: got %v\n%s\nwant\n%s", c.before, err, got, list(c.after))
		}
	}
}

// A list that can't be edited is refused, with a reason.
func TestEditRefused(t *testing.T) {
	e := mustEntry(t, ourEntry)
	for text, reason := range map[string]string{
		`{"name": "x", "plugins": [{"type": "detour"}]}`: "no network to work on",
		`{"name": "x"}`: "files of their own",
		`{"name": "x", "plugins": [{"type": "p"}]} x`: "invalid character",
	} {
		_, err := setEntry([]byte(text), e)
		if err == nil {
			t.Errorf("%s is accepted", text)
			continue
		}
		mustContain(t, err.Error(), reason)
	}
	if _, err := dropEntry([]byte(`{"name": "x", "plugins": [{"type": "detour"}]}`), e); err == nil {
		t.Error("a list is left empty")
	}
}

// The check of an edit is itself checked: each of these edits must fail it.
func TestCheckEditFindsMistakes(t *testing.T) {
	e := mustEntry(t, `{"type": "detour"}`)
	before := `{"name": "x", "n": 9007199254740993, "plugins": [{"type": "p", "a": [1]}]}`
	for _, after := range []string{
		`{"name": "x", "n": 9007199254740993, "plugins": [{"type": "p", "a": [1]}]}`,
		`{"name": "x", "n": 9007199254740992, "plugins": [{"type": "p", "a": [1]}, {"type": "detour"}]}`,
		`{"name": "x", "n": 9007199254740993, "plugins": [{"type": "p", "a": [1]}, {"type": "detour", "x": 1}]}`,
		`{"name": "x", "n": 9007199254740993, "plugins": [{"type": "p", "a": [1]}, {"type": "detour"}, {"type": "detour"}]}`,
		`{"name": "x", "n": 9007199254740993, "plugins": [{"type": "p", "a": []}, {"type": "detour"}]}`,
		`{"name": "x", "n": 9007199254740993, "plugins": [{"type": "detour"}]}`,
		`{"name": "x", "plugins": [{"type": "p", "a": [1]}, {"type": "detour"}]}`,
		`{"name": "x", "n": 9007199254740993, "plugins": [{"type": "p", "a": [1]}, {"type": "detour"}]`,
	} {
		if checkEdit([]byte(before), []byte(after), e, 1) == nil {
			t.Errorf("passes: %s", after)
		}
	}
}

func FuzzAppend(f *testing.F) {
	cases, err := filepath.Glob("testdata/networks/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range cases {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			f.Add(file.Data)
		}
	}
	for i, plugins := range []string{`[{"type":"detour"},{"type":"p"}]`, `[{"type":"p"} , {"type":"detour"},{"type":"detour"}]`, `[5]`, `[]`, `{}`} {
		f.Add(fmt.Appendf(nil, `{"name":"x","plugins":%s,"n":%d}`, plugins, i))
	}
	e := mustEntry(f, ourEntry)
	f.Fuzz(func(t *testing.T, before []byte) {
		input := bytes.Clone(before)
		was, parseErr := parseList(before, e.name)
		after, err := setEntry(before, e)
		if !bytes.Equal(input, before) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			// whatever libcni takes can be edited, but for the known exceptions
			if parseErr == nil && len(was.ours) != len(was.plugins) {
				t.Fatalf("%q: %v", before, err)
			}
			return
		}
		if err := checkEdit(before, after, e, 1); err != nil {
			t.Fatalf("%q became %q: %v", before, after, err)
		}
		if again, err := setEntry(after, e); err != nil || !bytes.Equal(again, after) {
			t.Fatalf("%q became %q and then %q, %v", before, after, again, err)
		}
		dropped, err := dropEntry(after, e)
		if err != nil {
			t.Fatalf("%q: %v", after, err)
		}
		if len(was.ours) == 0 && !bytes.Equal(dropped, before) {
			t.Fatalf("%q became %q and then %q", before, after, dropped)
		}
	})
}
