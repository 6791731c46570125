package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/detour-cni/detour/pkg/netconf"
)

// NetConf is the plugin's net conf, field by field.
type NetConf map[string]json.RawMessage

// ReadNetConf reads the file of the agent's configuration: the plugin's net conf, or a conflist with it.
func ReadNetConf(path string) (NetConf, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the plugin's configuration: %w", err)
	}
	fields, err := netconf.Entry(data)
	if err == nil && fields == nil {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("read the plugin's configuration %s: %w", path, err)
	}
	return fields, nil
}

// Set sets a field to a value that JSON can have.
func (n NetConf) Set(field string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	n[field] = data
}

// Parse checks the net conf as the plugin does.
func (n NetConf) Parse() (netconf.Conf, error) {
	data, err := json.Marshal(n)
	if err != nil {
		return netconf.Conf{}, err
	}
	return netconf.Parse(data)
}

// WithVersion returns the net conf with version as the only one of the mesh's configuration to ask for, unless that is "".
func (n NetConf) WithVersion(version string) (json.RawMessage, error) {
	out := maps.Clone(n)
	if version == "" {
		return json.Marshal(out)
	}
	proxy := map[string]any{}
	if n["proxy"] != nil {
		if err := json.Unmarshal(n["proxy"], &proxy); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	config, _ := proxy["meshConfig"].(map[string]any)
	if config == nil {
		config = map[string]any{}
	}
	config["versions"] = []string{version}
	proxy["meshConfig"] = config
	out.Set("proxy", proxy)
	return json.Marshal(out)
}
