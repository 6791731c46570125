package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runTrace runs the verb and returns what it prints, and its exit code.
func runTrace(t *testing.T, args ...string) (string, int, error) {
	t.Helper()
	c := traceCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&out)
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	ended := codeError{code: exitFailed, err: err}
	if err == nil {
		return out.String(), 0, nil
	}
	errors.As(err, &ended)
	return out.String(), ended.code, ended.err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// flagged gives a flag that text as a file, unless it has its value.
func flagged(t *testing.T, flag, text string) []string {
	t.Helper()
	if strings.HasSuffix(flag, "=") {
		return []string{flag}
	}
	return []string{flag, write(t, text)}
}

const emptyFilter = "*filter\nCOMMIT\n"

func TestTraceRefusesWhatItCanNotRead(t *testing.T) {
	out := []string{"--out", "--to", "10.0.0.1:80"}
	for _, test := range []struct {
		name, flag, text string
		args             []string
		want             string
	}{
		{"cut off", "--iptables-save", "*filter\n:INPUT ACCEPT [0:0]\n", out, "table filter has no COMMIT: the output of iptables-save is cut off, so save it again"},
		{"JSON", "--iptables-save", `{"nftables": []}`, out, "this is JSON, not the output of iptables-save: is it for --nft, --route or --addr?"},
		{"nft's own language", "--iptables-save", "table ip nat {\n}\n", out, "this is the output of nft: save that of `nft -j list ruleset` for --nft"},
		{"iptables -L", "--iptables-save", "Chain INPUT (policy ACCEPT)\ntarget prot opt source destination\n", out, "this is the output of iptables -L, which leaves out half of each rule: save that of iptables-save"},
		{"not text", "--iptables-save", "\x80\xff", out, "this is not text: save the output of iptables-save"},
		{"another table", "--iptables-save", "*routes\nCOMMIT\n", out, `line 1: iptables has no table "routes"`},
		{"no chain", "--iptables-save", "*nat\n-A GONE -j ACCEPT\nCOMMIT\n", out, "line 2: table nat has a rule for chain GONE, but no line for the chain itself"},
		{"a loop", "--iptables-save", "*filter\n:A - [0:0]\n-A OUTPUT -j A\n-A A -j A\nCOMMIT\n", out, "table ip filter chain A: chains call each other in a loop"},
		{"the other family", "--ip6tables-save", emptyFilter, out, "the packet is IPv4, but --ip6tables-save has the rules of IPv6: add --iptables-save"},
		{"the other family", "--iptables-save", emptyFilter, []string{"--out", "--to", "[fd00::1]:80"}, "the packet is IPv6, but --iptables-save has the rules of IPv4: add --ip6tables-save"},
		{"empty", "--iptables-save", "\n", out, "is empty"},
		{"families differ", "--iptables-save", emptyFilter, append(out, "--from", "fd00::1"), "--from: fd00::1 is not of the address family of --to 10.0.0.1"},
		{"no port", "--iptables-save", emptyFilter, []string{"--out", "--to", "10.0.0.1"}, `--to: "10.0.0.1" has no port: write IP:PORT, or [IP]:PORT for IPv6`},
		{"a name", "--iptables-save", emptyFilter, []string{"--out", "--to", "redis:6379"}, `--to: "redis:6379" is neither IP nor IP:PORT`},
		{"no source", "--iptables-save", emptyFilter, []string{"--in", "eth0", "--to", "10.0.0.1:80"}, "--from: a packet that comes in needs its source"},
		{"a protocol", "--iptables-save", emptyFilter, append(out, "--proto", "http"), `--proto: "http" is none of tcp, udp, sctp, icmp`},
		{"a state", "--iptables-save", emptyFilter, append(out, "--state", "open"), `--state: "open" is none of new, established, related, invalid, untracked`},
		{"live files", "--iptables-save", emptyFilter, append(out, "--live"), "--live needs a live namespace: --pod, --netns or --node"},
		{"an output", "--iptables-save", emptyFilter, append(out, "-o", "yaml"), `--output: "yaml" is neither text nor json`},
		{"cut off JSON", "--nft", `{"nftables": [{"metainfo": `, out, "the file is truncated after 26 bytes"},
		{"an empty flag", "--pod=", "", out, "--pod, --netns or --nft is empty"},
		{"a zone", "--ip6tables-save", emptyFilter, []string{"--out", "--to", "[fe80::1%eth0]:80"}, `--to: "[fe80::1%eth0]:80" has a zone`},
		{"a zone alone", "--ip6tables-save", emptyFilter, []string{"--out", "--proto", "icmp", "--to", "fe80::1%eth0"}, "has a zone"},
		{"to nobody", "--iptables-save", emptyFilter, []string{"--out", "--to", "0.0.0.0:80"}, "--to: no packet goes to 0.0.0.0"},
		{"to many", "--iptables-save", emptyFilter, []string{"--out", "--to", "224.0.0.1:80"}, "tcp goes to one host only"},
		{"to all", "--iptables-save", emptyFilter, []string{"--out", "--to", "255.255.255.255:80"}, "tcp goes to one host only"},
		{"from many", "--iptables-save", emptyFilter, append(out, "--from", "224.0.0.1"), "which is no source"},
		{"a file for a live namespace", "--route", "[]", append(out, "--node"), "[node route] were all set"},
		{"no interface", "--addr", `[{"ifname": "eth0", "addr_info": []}]`, []string{"--iptables-save", write(t, emptyFilter), "--in", "eth1", "--from", "10.0.0.2", "--to", "10.0.0.1:80"}, `--in: there is no interface "eth1", only eth0`},
		{"no namespace", "--netns", "", out, "no network namespace"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, code, err := runTrace(t, append(flagged(t, test.flag, test.text), test.args...)...)
			if err == nil || code != exitFailed || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("exit code %d: %v\nwant %s", code, err, test.want)
			}
		})
	}
}

// A rule that nobody knows is no error, and no guess.
func TestTraceSaysWhatItDoesNotKnow(t *testing.T) {
	rules := write(t, "*filter\n-A OUTPUT -m bpf --object-pinned /x -j DROP\nCOMMIT\n")
	out, code, err := runTrace(t, "--iptables-save", rules, "--out", "--to", "10.0.0.1:80", "--to-iface", "eth0", "-o", "json")
	type way struct {
		Verdict  string
		Outcomes []way
	}
	var answer struct{ Ways []way }
	if jsonErr := json.Unmarshal([]byte(out), &answer); err != nil || jsonErr != nil || code != exitUnknown {
		t.Fatalf("exit code %d, %v, %v: %s", code, err, jsonErr, out)
	}
	w := answer.Ways[0]
	if w.Verdict != "unknown" || len(w.Outcomes) != 2 || w.Outcomes[0].Verdict != "dropped" || w.Outcomes[1].Verdict != "accepted" {
		t.Errorf("%s", out)
	}
}

func TestControlCharactersAreEscaped(t *testing.T) {
	rules := write(t, "*filter\n-A OUTPUT -m comment --comment \"\x1b[2J\u009b1m\x07\" -j DROP\nCOMMIT\n")
	out, _, err := runTrace(t, "--iptables-save", rules, "--out", "--to", "10.0.0.1:80", "--to-iface", "eth0\n=> accepted")
	if err != nil || strings.ContainsAny(out, "\x1b\u009b\x07") || !strings.Contains(out, `\x1b[2J\u009b1m\a`) || strings.Contains(out, "\n=> accepted") {
		t.Errorf("%v: %q", err, out)
	}
}

func TestExitCodesOfTrace(t *testing.T) {
	for rule, want := range map[string]int{
		"-j ACCEPT": 0, "-j DROP": exitFinding, "-j REJECT": exitFinding, "-m foo -j DROP": exitUnknown,
		"-m statistic --mode random --probability 0.1 -j DROP": exitFinding,
	} {
		rules := write(t, "*filter\n-A OUTPUT "+rule+"\nCOMMIT\n")
		if _, code, err := runTrace(t, "--iptables-save", rules, "--out", "--to", "10.0.0.1:80", "--to-iface", "eth0"); code != want || err != nil {
			t.Errorf("%s: exit code %d, want %d: %v", rule, code, want, err)
		}
	}
}
