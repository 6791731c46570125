package xtables

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

func TestTablesOfNftsOwnAreLeftOut(t *testing.T) {
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, "nft")
	for name, text := range map[string]string{
		"another name":     "table ip kube-proxy { chain filter-input { type filter hook input priority 0\n}\n}",
		"another chain":    "table ip filter { chain input { type filter hook input priority 0\n}\n}",
		"another priority": "table ip filter { chain INPUT { type filter hook input priority -1\n}\n}",
		"another hook":     "table ip filter { chain INPUT { type filter hook forward priority 0\n}\n}",
		"another type":     "table ip mangle { chain OUTPUT { type filter hook output priority -150\n}\n}",
		"another family":   "table inet filter { chain INPUT { type filter hook input priority 0\n}\n}",
		"dormant":          "table ip filter { flags dormant\nchain INPUT { type filter hook input priority 0\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "own")
			mustRun(t, ns, text, "nft", "-f", "-")
			if tables := save(t, ns, rules.IPv4); tables.Nft != "" || len(tables.Names) > 0 {
				t.Errorf("got %v, %s", tables.Names, tables.Nft)
			}
			mustRun(t, ns, "", "iptables-nft", "-t", "raw", "-A", "OUTPUT", "-j", "NOTRACK")
			if tables := save(t, ns, rules.IPv4); !slices.Equal(tables.Names, []string{"raw"}) {
				t.Errorf("beside iptables' raw: got %v", tables.Names)
			}
		})
	}
}

// Tables that nobody has used are not there, and reading doesn't make them. A table has all its base chains as soon as
// it has one.
func TestReadingMakesNoTables(t *testing.T) {
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "empty")
	list := func() (listed string) {
		err := ns.Do(func() error {
			for _, path := range []string{"/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"} {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				listed += string(data)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return listed
	}
	for _, f := range rules.Families {
		if tables := save(t, ns, f); tables.Nft != "" || tables.Legacy != "" || tables.Names != nil {
			t.Errorf("%s: got %+v", f, tables)
		}
	}
	if got := list() + mustRun(t, ns, "", "nft", "list", "tables"); got != "" {
		t.Errorf("afterwards there is %s", got)
	}
	mustRun(t, ns, "table ip nat { chain OUTPUT { type nat hook output priority -100; policy drop\n}\n}", "nft", "-f", "-")
	const want = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
	if got := save(t, ns, rules.IPv4).Nft; got != want {
		t.Errorf("got %s", got)
	}
}

// Policies and rules that packets have met have counters. The kernel counts them for each processor.
func TestCountersAreRead(t *testing.T) {
	forAll(t, func(t *testing.T, ns *nettest.Namespace, f rules.Family, variant string) {
		address := "127.0.0.1"
		if f == rules.IPv6 {
			address = "::1"
		}
		mustRun(t, ns, "*filter\n:OUTPUT DROP [7:9]\n:INPUT ACCEPT [1:2]\n-A OUTPUT -p udp --dport 9 -j ACCEPT\n-A OUTPUT -m limit --limit 1/hour -p udp\nCOMMIT\n", program(f, variant, "-restore"), "--counters")
		for range 3 {
			_, _ = run(t, ns, "", "bash", "-c", "echo x > /dev/udp/"+address+"/9; echo x > /dev/udp/"+address+"/10")
		}
		equal(t, ns, f, variant)
		if got := save(t, ns, f).text(variant); !strings.Contains(got, "\n[3:") {
			t.Errorf("no rule has met three packets:\n%s", got)
		}
	})
}

// Whoever reads while another process replaces the table sees one of its states.
func TestATableThatChangesIsReadWhole(t *testing.T) {
	forAll(t, func(t *testing.T, ns *nettest.Namespace, f rules.Family, variant string) {
		var inputs, texts []string
		for chain, words := range map[string]string{"a": "-j ACCEPT", "b": "-p tcp -m tcp --dport 80 -m comment --comment x -j DROP"} {
			inputs = append(inputs, "*filter\n:"+chain+" - [0:0]\n"+strings.Repeat("-A "+chain+" "+words+"\n", 50)+"COMMIT\n")
			mustRun(t, ns, inputs[len(inputs)-1], program(f, variant, "-restore"))
			texts = append(texts, save(t, ns, f).text(variant))
		}
		var writer sync.WaitGroup
		writer.Go(func() {
			for i := range 30 {
				if out, err := run(t, ns, inputs[i%2], program(f, variant, "-restore")); err != nil {
					t.Error(err, out)
				}
			}
		})
		done := make(chan struct{})
		go func() { writer.Wait(); close(done) }()
		for reads := 0; ; reads++ {
			var tables Tables
			err := ns.Do(func() (err error) {
				tables, err = Save(f)
				return err
			})
			if got := tables.text(variant); err == nil && got != texts[0] && got != texts[1] {
				t.Fatalf("read %d is neither of the two: %s", reads, got)
			} else if err != nil && !strings.Contains(err.Error(), "run it again") {
				t.Fatal(err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
}

// Between the lists of chains and rules there is no part of a dump in which the kernel could say that something has changed.
func TestNoChainIsReadWithoutItsRules(t *testing.T) {
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "between")
	mustRun(t, ns, "", "iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
	inTable, chain := netlink.Text(unix.NFTA_CHAIN_TABLE, "filter"), "comes-and-goes"
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		err := ns.Do(func() error {
			c, err := nft.Open()
			if err != nil {
				return err
			}
			defer c.Close()
			for {
				come, goes := nft.NewBatch(nil), nft.NewBatch(nil)
				come.Add(chain, unix.NFPROTO_IPV4, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, inTable, netlink.Text(unix.NFTA_CHAIN_NAME, chain))
				come.Add(chain, unix.NFPROTO_IPV4, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, inTable, netlink.Text(unix.NFTA_RULE_CHAIN, chain), netlink.Nested(unix.NFTA_RULE_EXPRESSIONS))
				goes.Delete(chain, unix.NFPROTO_IPV4, unix.NFT_MSG_DELRULE, inTable, netlink.Text(unix.NFTA_RULE_CHAIN, chain))
				goes.Delete(chain, unix.NFPROTO_IPV4, unix.NFT_MSG_DELCHAIN, inTable, netlink.Text(unix.NFTA_CHAIN_NAME, chain))
				for _, b := range []*nft.Batch{come, goes} {
					if err := c.Commit(b.End()); err != nil {
						return err
					}
				}
				select {
				case <-stop:
					return nil
				default:
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	defer writer.Wait()
	defer close(stop)
	for range 200 {
		var tables Tables
		err := ns.Do(func() (err error) {
			tables, err = Save(rules.IPv4)
			return err
		})
		if err != nil && !errors.Is(err, netlink.ErrChanged) {
			t.Fatal(err)
		}
		if strings.Contains(tables.Nft, ":"+chain) != strings.Contains(tables.Nft, "-A "+chain) {
			t.Fatalf("got %s", tables.Nft)
		}
	}
}

func TestWithoutThePrivilegeTheErrorSaysSo(t *testing.T) {
	for _, variant := range variants {
		t.Run(variant, func(t *testing.T) {
			nettest.RequireNetns(t)
			ns := nettest.StartNamespace(t, "privilege")
			mustRun(t, ns, "", program(rules.IPv4, variant, ""), "-A", "INPUT", "-j", "DROP")
			err := ns.DoUnprivileged(func() error {
				_, err := Save(rules.IPv4)
				return err
			})
			if !errors.Is(err, unix.EPERM) || !strings.HasPrefix(err.Error(), "read the IPv4 tables of iptables-") || !strings.HasSuffix(err.Error(), ": run as root, or with CAP_NET_ADMIN in the namespace") {
				t.Errorf("got %v", err)
			}
		})
	}
}
