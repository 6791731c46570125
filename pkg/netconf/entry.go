package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Type is the plugin's type in a list of plugins.
const Type = "detour"

// Entry returns the plugin's net conf from a file's content. From a conflist it takes detour's entry, to which it adds the list's
// name and version as a runtime would; any other content is the net conf itself. It is an error if the list has no such entry,
// or several.
func Entry(data []byte) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("it is not a JSON object: %w", err)
	}
	if fields == nil {
		return nil, errors.New("it is not a JSON object")
	}
	if fields["plugins"] == nil {
		return fields, nil
	}
	entry, err := onlyEntry(fields["plugins"])
	if err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	for _, field := range []string{"name", "cniVersion"} {
		if value := fields[field]; value != nil {
			entry[field] = value
		}
	}
	return entry, nil
}

// onlyEntry returns the one entry of a list of plugins that is detour's.
func onlyEntry(list json.RawMessage) (map[string]json.RawMessage, error) {
	var plugins []map[string]json.RawMessage
	if err := json.Unmarshal(list, &plugins); err != nil {
		return nil, err
	}
	var found []map[string]json.RawMessage
	for _, p := range plugins {
		if string(p["type"]) == `"`+Type+`"` {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d entries are of type %s, want one", len(found), Type)
	}
	return found[0], nil
}
