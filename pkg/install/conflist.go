package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/containernetworking/cni/libcni"
)

// span is a JSON value's place in a text.
type span struct{ start, end int }

// list is a configuration list as text: where its plugins are and which of them are ours.
type list struct {
	text    []byte
	open    int // after the bracket of the list of plugins
	plugins []span
	ours    []int
}

// parseList finds the plugins of a configuration list that libcni accepts, and those of the given type among them.
func parseList(text []byte, name string) (list, error) {
	conf, err := libcni.ConfListFromBytes(text)
	if err != nil {
		return list{}, err
	}
	l := list{text: text}
	for i, p := range conf.Plugins {
		if p.Network.Type == name {
			l.ours = append(l.ours, i)
		}
	}
	plugins, err := member(text, span{0, len(text)}, "plugins")
	if err != nil {
		return list{}, err
	}
	if l.open, l.plugins, err = elements(text, plugins); err != nil {
		return list{}, fmt.Errorf("plugins: %w", err)
	}
	if len(l.plugins) != len(conf.Plugins) {
		return list{}, fmt.Errorf("%d plugins in the text, %d for libcni", len(l.plugins), len(conf.Plugins))
	}
	return l, nil
}

// member finds the value of a key of the object at that place. If there are two, the last one counts, for libcni too; if there is
// none, the place is empty.
func member(text []byte, at span, name string) (found span, _ error) {
	d := json.NewDecoder(bytes.NewReader(text[at.start:at.end]))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return span{}, errors.Join(fmt.Errorf("got %v, want an object", t), err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return span{}, err
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return span{}, err
		}
		if key == name {
			end := at.start + int(d.InputOffset())
			found = span{end - len(raw), end}
		}
	}
	_, err := d.Token() // the closing brace
	return found, err
}

// elements finds the elements of the array at that place, if it is not empty.
func elements(text []byte, at span) (open int, found []span, _ error) {
	if at == (span{}) {
		return 0, nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(text[at.start:at.end]))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return 0, nil, errors.Join(fmt.Errorf("got %v, want a list", t), err)
	}
	open = at.start + int(d.InputOffset())
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return 0, nil, err
		}
		end := at.start + int(d.InputOffset())
		found = append(found, span{end - len(raw), end})
	}
	_, err := d.Token() // the closing bracket
	return open, found, err
}

// setEntry returns the list with the entry in it exactly once: where it was, else at the end. It keeps every other byte, and if the
// entry is right already, all of them.
func setEntry(text []byte, e entry) ([]byte, error) {
	l, err := parseList(text, e.name)
	if err != nil {
		return nil, err
	}
	switch len(l.plugins) {
	case 0:
		return nil, fmt.Errorf("its plugins are in files of their own: list them in it, so that %s can be the last", e.name)
	case len(l.ours):
		return nil, fmt.Errorf("there is no plugin but %s: it has no network to work on", e.name)
	}
	var edited []byte
	if len(l.ours) == 0 {
		edited, err = l.appended(e)
	} else {
		edited, err = l.replaced(e)
	}
	if err != nil {
		return nil, err
	}
	return edited, checkEdit(text, edited, e, 1)
}

// dropEntry returns the list without the plugin, byte for byte what it was before setEntry appended the entry. It returns a list
// without the plugin unchanged.
func dropEntry(text []byte, e entry) ([]byte, error) {
	l, err := parseList(text, e.name)
	if err != nil || len(l.ours) == 0 {
		return text, err
	}
	if len(l.ours) == len(l.plugins) {
		return nil, fmt.Errorf("there is no plugin but %s: the runtime can't load a list without plugins", e.name)
	}
	edited := l.without(l.ours)
	return edited, checkEdit(text, edited, e, 0)
}

// appended adds the entry after the last plugin, separated like the plugins before it.
func (l list) appended(e entry) ([]byte, error) {
	n := len(l.plugins)
	last := l.plugins[n-1]
	between := append([]byte(","), l.text[l.open:last.start]...)
	if n > 1 {
		between = l.text[l.plugins[n-2].end:last.start]
	}
	text, err := styled(e.text, l.text[last.start:last.end])
	if err != nil {
		return nil, err
	}
	return slices.Concat(l.text[:last.end], between, text, l.text[last.end:]), nil
}

// replaced replaces the first of our entries, unless it says the same, and removes the others.
func (l list) replaced(e entry) ([]byte, error) {
	first := l.plugins[l.ours[0]]
	old := l.text[first.start:first.end]
	value, err := decode(old)
	if err != nil {
		return nil, err
	}
	rest := l.without(l.ours[1:]) // all come after the first, which keeps its place
	if reflect.DeepEqual(value, e.value) {
		return rest, nil
	}
	text, err := styled(e.text, old)
	if err != nil {
		return nil, err
	}
	return slices.Concat(rest[:first.start], text, rest[first.end:]), nil
}

// without removes plugins, each with the comma before it or, at the head of the list, with the one after it. which is sorted and
// not all of them.
func (l list) without(which []int) []byte {
	text, plugins := slices.Clone(l.text), l.plugins
	for n, i := range slices.Backward(which) {
		if n == i { // so are all before it
			return slices.Delete(text, plugins[0].start, plugins[i+1].start)
		}
		text = slices.Delete(text, plugins[i-1].end, plugins[i].end)
	}
	return text
}

// styled formats the entry like the model: on one line, or with its indentation and line ends.
func styled(text, model []byte) ([]byte, error) {
	const blank = " \t"
	newline := bytes.LastIndexByte(model, '\n')
	if newline < 0 {
		return text, nil
	}
	prefix := bytes.TrimSuffix(model[newline+1:], []byte("}"))
	if len(bytes.Trim(prefix, blank)) > 0 {
		return text, nil
	}
	indent := []byte("  ")
	first := bytes.IndexByte(model, '\n')
	line := model[first+1:]
	inner, ok := bytes.CutPrefix(line[:len(line)-len(bytes.TrimLeft(line, blank))], prefix)
	if ok && len(inner) > 0 {
		indent = inner
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, string(prefix), string(indent)); err != nil {
		return nil, err
	}
	if first > 0 && model[first-1] == '\r' {
		return bytes.ReplaceAll(out.Bytes(), []byte("\n"), []byte("\r\n")), nil
	}
	return out.Bytes(), nil
}

// checkEdit checks an edit before it is written: libcni accepts it, it has the entry as often as it should, and nothing else has
// changed.
func checkEdit(before, after []byte, e entry, times int) error {
	l, err := parseList(after, e.name)
	if err != nil {
		return fmt.Errorf("the edited list: %w", err)
	}
	if len(l.ours) != times {
		return fmt.Errorf("the edited list has %d entries of %s, want %d", len(l.ours), e.name, times)
	}
	for _, i := range l.ours {
		value, err := decode(l.text[l.plugins[i].start:l.plugins[i].end])
		if err != nil || !reflect.DeepEqual(value, e.value) {
			return errors.Join(errors.New("the edited list has another entry"), err)
		}
	}
	same, err := sameForeign(before, after, e.name)
	if err == nil && !same {
		err = errors.New("the edited list differs in more than the entry")
	}
	return err
}

// sameForeign compares what two lists say besides the plugin of that name.
func sameForeign(a, b []byte, name string) (bool, error) {
	x, err := foreign(a, name)
	if err != nil {
		return false, err
	}
	y, err := foreign(b, name)
	return reflect.DeepEqual(x, y), err
}

func foreign(text []byte, name string) (map[string]any, error) {
	l, err := parseList(text, name)
	if err != nil {
		return nil, err
	}
	value, err := decode(text)
	if err != nil {
		return nil, err
	}
	object, _ := value.(map[string]any)
	plugins, _ := object["plugins"].([]any)
	if len(plugins) != len(l.plugins) {
		return nil, fmt.Errorf("%d plugins, %d for libcni", len(plugins), len(l.plugins))
	}
	for _, i := range slices.Backward(l.ours) {
		plugins = slices.Delete(plugins, i, i+1)
	}
	object["plugins"] = plugins
	return object, nil
}

// decode reads JSON without loss: numbers stay as they are written.
func decode(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	err := d.Decode(&value)
	return value, err
}

// listOf makes a list of a single plugin's configuration and, unless nil, the entry. As libcni does, it gives the list the name and
// version of the configuration, and leaves the configuration as it is.
func listOf(single []byte, e *entry) ([]byte, error) {
	conf, err := libcni.NetworkPluginConfFromBytes(single)
	if err != nil {
		return nil, err
	}
	if e != nil && conf.Network.Type == e.name {
		return nil, fmt.Errorf("there is no plugin but %s: it has no network to work on", e.name)
	}
	plugins := []json.RawMessage{single}
	if e != nil {
		plugins = append(plugins, e.text)
	}
	var compact, out bytes.Buffer
	encoder := json.NewEncoder(&compact)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(struct {
		CNIVersion string            `json:"cniVersion,omitempty"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}{conf.Network.CNIVersion, conf.Network.Name, plugins}); err != nil {
		return nil, err
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	if _, err := libcni.ConfListFromBytes(out.Bytes()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
