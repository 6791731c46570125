package nettest

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// options are the NAME=VALUE words after the destination of a packet that goes out; no other has any.
var options = map[string]func(p *Packet, value string) error{
	"uid": func(p *Packet, value string) (err error) { p.UID, err = parseID("UID", value); return err },
	"gid": func(p *Packet, value string) (err error) { p.GID, err = parseID("GID", value); return err },
	"src": setSrc,
}

// setOptions reads the words after the destination, in any order, each option once.
func (p *Packet) setOptions(words []string) error {
	seen := map[string]bool{}
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		set := options[name]
		switch {
		case p.Direction != Out:
			return fmt.Errorf("option %q: only out has options after the destination", word)
		case set == nil:
			return fmt.Errorf("option %q: there are only uid, gid and src", word)
		case seen[name]:
			return fmt.Errorf("option %q: it is there twice", word)
		}
		seen[name] = true
		if err := set(p, value); err != nil {
			return fmt.Errorf("option %q: %w", word, err)
		}
	}
	return nil
}

// setVia reads the word that may stand before the port of a packet that comes in, and reports whether it was that word.
func (p *Packet) setVia(word string) (bool, error) {
	link, found := strings.CutPrefix(word, "via=")
	switch {
	case !found:
		return false, nil
	case p.Direction != In:
		return true, fmt.Errorf("%q: only what comes in has it, all else goes by its destination", word)
	case link != Net1Link:
		return true, fmt.Errorf("%q: there is only %s", word, Net1Link)
	}
	p.Via = link
	return true, nil
}

func setSrc(p *Packet, value string) error {
	src, err := netip.ParseAddr(value)
	switch {
	case err != nil:
		return errors.New("an address is needed")
	case src.Is4In6(), src.Zone() != "", src.IsUnspecified(), src.IsMulticast():
		return errors.New("the address is no host's")
	case familyOf(src) != p.Families:
		return errors.New("the destination is of the other family")
	}
	p.Src = src
	return nil
}

func parseID(what, text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	// The kernel reads the highest number as "no ID".
	if err != nil || id == math.MaxUint32 {
		return 0, fmt.Errorf("a %s from 0 to %d is needed", what, uint32(math.MaxUint32-1))
	}
	return uint32(id), nil
}
