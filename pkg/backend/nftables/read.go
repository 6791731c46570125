package nftables

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Read lists the table of the calling thread's namespace in the words in which String of a Table has it, but for what the
// set armed holds; nothing if there is no table.
func Read() (Listing, error) {
	s, err := open()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tableHead, err)
	}
	defer s.close()
	l, err := s.list()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tableHead, err)
	}
	return l, nil
}

func (s *socket) list() (Listing, error) {
	var l Listing
	var sets []set
	err := s.ask(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, func(f fields) {
		name, kind, flags := f.text(unix.NFTA_SET_NAME), f.number(unix.NFTA_SET_KEY_TYPE), f.number(unix.NFTA_SET_FLAGS)
		if flags&unix.NFT_SET_ANONYMOUS != 0 {
			sets = append(sets, set{name: name, of: listType(kind), intervals: flags&unix.NFT_SET_INTERVAL != 0})
			return
		}
		desc := parse(f[unix.NFTA_SET_DESC])
		l = append(l, block{"set " + name, []string{setHead(kind, desc.number(unix.NFTA_SET_DESC_SIZE), flags)}})
	}, text(unix.NFTA_SET_TABLE, tableName))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // there is no such table
	}
	for i := range sets {
		err = errors.Join(err, s.fill(&sets[i]))
	}
	err = errors.Join(err, s.ask(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(f fields) {
		if f.text(unix.NFTA_CHAIN_TABLE) == tableName { // older kernels list those of every table
			l = append(l, listedChain(f))
		}
	}, text(unix.NFTA_CHAIN_TABLE, tableName)))
	err = errors.Join(err, s.ask(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(f fields) {
		if i := l.find("chain " + f.text(unix.NFTA_RULE_CHAIN)); i >= 0 && f.text(unix.NFTA_RULE_TABLE) == tableName {
			r := rule{f[unix.NFTA_RULE_EXPRESSIONS], sets, readComment(f[unix.NFTA_RULE_USERDATA])}
			l[i].lines = append(l[i].lines, r.String())
		}
	}, text(unix.NFTA_RULE_TABLE, tableName)))
	return l, err
}

// listType is the datatype of a list that detour makes, nil for others.
func listType(id uint32) *datatype {
	for _, s := range sources {
		if s.id == id && id != 0 {
			return s.datatype
		}
	}
	return nil
}

// fill reads what the set holds; one of a type that detour doesn't know stays empty and nameless.
func (s *socket) fill(to *set) error {
	if to.of == nil {
		return nil
	}
	var borders []border
	err := s.ask(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(f fields) {
		for a := range decode(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			element := parse(a.data)
			var k key
			copy(k[:], element.value(unix.NFTA_SET_ELEM_KEY))
			borders = append(borders, border{k, element.number(unix.NFTA_SET_ELEM_FLAGS)&unix.NFT_SET_ELEM_INTERVAL_END != 0})
		}
	}, text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), text(unix.NFTA_SET_ELEM_LIST_SET, to.name))
	to.spans = to.spansOf(borders)
	return err
}

func listedChain(f fields) block {
	b := block{name: "chain " + f.text(unix.NFTA_CHAIN_NAME)}
	if f[unix.NFTA_CHAIN_HOOK] == nil {
		return b
	}
	at := parse(f[unix.NFTA_CHAIN_HOOK])
	h := hook{kind: f.text(unix.NFTA_CHAIN_TYPE), number: at.number(unix.NFTA_HOOK_HOOKNUM), priority: int32(at.number(unix.NFTA_HOOK_PRIORITY))}
	h.name = fmt.Sprint(h.number)
	for _, known := range hooks {
		if known.number == h.number {
			h.name = known.name
		}
	}
	b.lines = []string{h.line(nameOf(verdicts, f.number(unix.NFTA_CHAIN_POLICY)))}
	return b
}

// readComment finds the comment among what programs keep with a rule.
func readComment(userdata []byte) string {
	for len(userdata) >= 2 && len(userdata) >= 2+int(userdata[1]) {
		kind, value := userdata[0], userdata[2:2+int(userdata[1])]
		if kind == udataComment {
			return strings.TrimSuffix(string(value), "\x00")
		}
		userdata = userdata[2+len(value):]
	}
	return ""
}
