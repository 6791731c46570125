package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// open opens a socket in the namespace.
func open(t *testing.T, ns *nettest.Namespace, protocol int) *Conn {
	t.Helper()
	var c *Conn
	err := ns.Do(func() (err error) {
		c, err = Open(protocol)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// addAddress adds 10.0.0.1, of this prefix length, to lo.
func (c *Conn) addAddress(bits byte) error {
	header := binary.NativeEndian.AppendUint32([]byte{unix.AF_INET, bits, 0, 0}, 1)
	return c.Ask(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, header, func([]byte) {}, Attribute{unix.IFA_LOCAL, []byte{10, 0, 0, 1}})
}

const (
	nfTables = unix.NFNL_SUBSYS_NFTABLES << 8
	tables   = 1000 // more than one part of a dump holds
)

var (
	ipv4   = []byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}
	border = []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
)

// transaction has a message of this kind for each name of a table. Their sequence numbers begin at first.
func transaction(kind int, first uint32, names ...string) []byte {
	batch := AppendMessage(nil, 0, unix.NFNL_MSG_BATCH_BEGIN, 0, border)
	for i, name := range names {
		batch = AppendMessage(batch, first+uint32(i), nfTables|kind, unix.NLM_F_CREATE|unix.NLM_F_ACK, ipv4, Text(unix.NFTA_TABLE_NAME, name))
	}
	return AppendMessage(batch, 1, unix.NFNL_MSG_BATCH_END, 0, border)
}

func (c *Conn) addTables(from, to int) error {
	var names []string
	for i := from; i < to; i++ {
		names = append(names, fmt.Sprint("table", i))
	}
	return c.Commit(transaction(unix.NFT_MSG_NEWTABLE, 100, names...), false)
}

func (c *Conn) dumpTables(each func()) error {
	return c.Ask(nfTables|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, ipv4, func([]byte) { each() })
}

func TestADumpThatChangedMeanwhileIsAnError(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "dump")
	c, other := open(t, ns, unix.NETLINK_NETFILTER), open(t, ns, unix.NETLINK_NETFILTER)
	for i := 0; i < tables; i += 100 { // their acknowledgements fit into the buffer
		if err := c.addTables(i, i+100); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	err := c.dumpTables(func() {
		if seen++; seen == 1 {
			if err := other.addTables(tables, tables+1); err != nil {
				t.Error(err)
			}
		}
	})
	if !errors.Is(err, ErrChanged) {
		t.Errorf("got %v", err)
	}
	seen = 0
	if err := c.dumpTables(func() { seen++ }); err != nil || seen != tables+1 {
		t.Errorf("after it: %d tables, %v", seen, err)
	}
}

func TestAnswersToAnEarlierRequestAreLeftOut(t *testing.T) {
	t.Parallel()
	c := open(t, nettest.StartNamespace(t, "earlier"), unix.NETLINK_NETFILTER)
	if err := c.addTables(0, 10); err != nil {
		t.Fatal(err)
	}
	c.number++
	earlier := AppendMessage(nil, c.number, nfTables|unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, ipv4, Text(unix.NFTA_TABLE_NAME, "none"))
	if _, err := unix.Write(c.fd, earlier); err != nil { // nobody reads that it is refused
		t.Fatal(err)
	}
	seen := 0
	if err := c.dumpTables(func() { seen++ }); err != nil || seen != 10 {
		t.Errorf("got %d tables, %v", seen, err)
	}
}

func TestARefusalHasTheKernelsReason(t *testing.T) {
	t.Parallel()
	c := open(t, nettest.StartNamespace(t, "refusal"), unix.NETLINK_ROUTE)
	err := c.addAddress(33)
	var r *Refusal
	if !errors.As(err, &r) || !errors.Is(err, unix.EINVAL) || r.Number != c.number || !strings.Contains(strings.ToLower(r.Error()), "invalid prefix length") {
		t.Errorf("got %v", err)
	}
	if err := c.addAddress(32); err != nil {
		t.Error(err)
	}
	if err := c.addAddress(32); !errors.Is(err, unix.EEXIST) {
		t.Errorf("again: %v", err)
	}
}

// The kernel refuses each message by an answer of its own. They are more than the socket's buffer holds.
func TestTheFirstOfManyRefusalsIsReturned(t *testing.T) {
	t.Parallel()
	c := open(t, nettest.StartNamespace(t, "many"), unix.NETLINK_NETFILTER)
	err := c.Commit(transaction(unix.NFT_MSG_DELTABLE, 100, slices.Repeat([]string{"none"}, 20_000)...), true)
	var r *Refusal
	if !errors.As(err, &r) || !errors.Is(err, unix.ENOENT) || r.Number != 100 {
		t.Errorf("got %v, %+v", err, r)
	}
}

func TestAttributesAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	var want []Attribute
	for length := range 10 {
		want = append(want, Attribute{uint16(length), []byte("123456789"[:length])})
	}
	encoded := AppendAttributes(nil, want...)
	equal := func(a, b Attribute) bool { return a.Kind == b.Kind && string(a.Data) == string(b.Data) }
	if got := slices.Collect(Attributes(encoded)); !slices.EqualFunc(got, want, equal) {
		t.Errorf("got %v", got)
	}
	for end := range encoded { // nothing that is cut off is read, or read past
		if got := slices.Collect(Attributes(encoded[:end:end])); len(got) > len(want) || !slices.EqualFunc(got, want[:len(got)], equal) {
			t.Errorf("of %d bytes: got %v", end, got)
		}
	}
	for length := range AttributeHeader { // which no attribute has
		if got := slices.Collect(Attributes(AppendAttributeHeader(nil, 1, length))); got != nil {
			t.Errorf("of an attribute of %d bytes: got %v", length, got)
		}
	}
	nested := Parse(AppendAttributes(nil, Nested(3, Text(1, "a"), Number(2, 7), Attribute{40, nil})))
	f := Parse(nested[3])
	if f.Text(1) != "a" || f.Number(2) != 7 || f.Text(5) != "" || f.Number(5) != 0 || f.Number(1) != 0 {
		t.Errorf("nested: %v", f)
	}
}

func TestAListenerSaysWhatItHasLost(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "listen")
	c := open(t, ns, unix.NETLINK_NETFILTER)
	var l *Listener
	err := ns.Do(func() (err error) {
		l, err = Listen(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES, 1) // the kernel's least buffer
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	count := func(kind int, _ []byte) {
		if kind == nfTables|unix.NFT_MSG_NEWTABLE {
			seen++
		}
	}
	if err := errors.Join(c.addTables(0, 1), l.Receive(count)); err != nil || seen != 1 {
		t.Errorf("got %d, %v", seen, err)
	}
	for i := range 100 {
		if err := c.addTables(1+i, 2+i); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Receive(count); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	_ = l.SetDeadline(time.Now().Add(time.Second))
	for err = nil; err == nil; {
		err = l.Receive(count)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || seen < 2 || seen >= 101 {
		t.Errorf("got %d, %v", seen, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Receive(count); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := Listen(unix.NETLINK_NETFILTER, 1000, 1); err == nil || !strings.Contains(err.Error(), "join netlink group 1000") {
		t.Errorf("a group that isn't: %v", err)
	}
}
