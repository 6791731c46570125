// Package netconf reads detour's network configuration, the net conf: what a runtime passes to the plugin, and what stands in
// a conflist or in the agent's configuration. Plugin, agent and command line share it.
package netconf

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
)

// Defaults of the net conf.
const (
	DefaultTimeout  = 10 * time.Second
	DefaultStateDir = "/run/detour"
)

// wire is the net conf as JSON, with everything that the CNI specification or a runtime may put beside it. Any other field
// is a mistake.
type wire struct {
	types.PluginConf
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	Args          json.RawMessage `json:"args"`

	Mesh       string `json:"mesh"`
	MeshConfig struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"meshConfig"`
	AgentSocket             string        `json:"agentSocket"`
	Kubeconfig              string        `json:"kubeconfig"`
	Manifests               string        `json:"manifests"`
	Proxy                   mesh.Override `json:"proxy"`
	ExcludeNamespaces       *[]string     `json:"excludeNamespaces"`
	DirectInitContainers    []string      `json:"directInitContainers"`
	RedirectAfterProxyStart bool          `json:"redirectAfterProxyStart"`
	Backend                 string        `json:"backend"`
	OnError                 string        `json:"onError"`
	Timeout                 string        `json:"timeout"`
	StateDir                string        `json:"stateDir"`
	LogFile                 string        `json:"logFile"`
	LogLevel                string        `json:"logLevel"`
}

// Conf is a valid net conf with its defaults filled in.
type Conf struct {
	types.PluginConf
	decision.Options
	AgentSocket string
	Kubeconfig  string
	Manifests   string
	// Backend is one of backend.Choices.
	Backend      string
	AllowOnError bool
	// Timeout bounds a whole ADD.
	Timeout  time.Duration
	StateDir string
	LogFile  string
	LogLevel slog.Level
}

// Parse reads a net conf. Every error is a CNI error with code 7 that names the field. Beside the error it returns a Conf with
// all that could be used, for DEL, which has to succeed even so.
func Parse(stdin []byte) (Conf, error) {
	var n wire
	n.StateDir = DefaultStateDir
	decodeErr := n.decode(stdin)
	conf, err := n.conf()
	if decodeErr != nil {
		err = describe(decodeErr)
	}
	if err != nil {
		return conf, types.NewError(types.ErrInvalidNetworkConfig, "network configuration of detour: "+err.Error(), "")
	}
	return conf, nil
}

// ofSpecification begins the keys that the CNI specification keeps for itself. Which of them a runtime sends with which verb
// is not for a plugin to judge.
const ofSpecification = "cni.dev/"

// decode reads the net conf strictly, but for keys of the specification that detour has no use for.
func (n *wire) decode(stdin []byte) error {
	err := n.decodeStrictly(stdin)
	if err == nil || !strings.HasPrefix(err.Error(), unknownField+`"`+ofSpecification) {
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &fields); err != nil {
		return err
	}
	maps.DeleteFunc(fields, func(key string, _ json.RawMessage) bool {
		return strings.HasPrefix(key, ofSpecification) && key != ofSpecification+"valid-attachments"
	})
	if stdin, err = json.Marshal(fields); err != nil {
		return err
	}
	return n.decodeStrictly(stdin)
}

// unknownField is how encoding/json says it.
const unknownField = "json: unknown field "

func (n *wire) decodeStrictly(stdin []byte) error {
	d := json.NewDecoder(bytes.NewReader(stdin))
	d.DisallowUnknownFields()
	return d.Decode(n)
}

// Type is the plugin's type in a list of plugins.
const Type = "detour"

// Entry returns the plugin's net conf from a file's content: detour's entry of a conflist, with the list's name and version as
// a runtime would add them, or the content itself if it is no list. It is an error if the list has no such entry.
func Entry(data []byte) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("it is no JSON object: %w", err)
	}
	if fields["plugins"] == nil {
		return fields, nil
	}
	var plugins []map[string]json.RawMessage
	if err := json.Unmarshal(fields["plugins"], &plugins); err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	i := slices.IndexFunc(plugins, func(p map[string]json.RawMessage) bool { return string(p["type"]) == `"`+Type+`"` })
	if i < 0 {
		return nil, fmt.Errorf("its list of plugins has none of type %s", Type)
	}
	for _, field := range []string{"name", "cniVersion"} {
		if value := fields[field]; value != nil {
			plugins[i][field] = value
		}
	}
	return plugins[i], nil
}

// describe says what a JSON error means in terms of the net conf.
func describe(err error) error {
	if wrongType, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s: got a %s, want a %s", wrongType.Field, wrongType.Value, kindName(wrongType.Type.Kind()))
	}
	if field, ok := strings.CutPrefix(err.Error(), unknownField); ok {
		return fmt.Errorf("%s: there is no such field", strings.Trim(field, `"`))
	}
	return err
}

// kindName is JSON's name for a kind of Go.
func kindName(kind reflect.Kind) string {
	switch kind { //nolint:exhaustive // the net conf has no others whose name differs
	case reflect.Slice:
		return "list"
	case reflect.Struct, reflect.Map:
		return "object"
	case reflect.Uint16:
		return "number of 0 to 65535"
	case reflect.Uint32:
		return "number of 0 to 4294967295"
	}
	return kind.String()
}

func (n wire) conf() (Conf, error) {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	c := Conf{
		PluginConf:   n.PluginConf,
		AgentSocket:  n.AgentSocket,
		Kubeconfig:   n.Kubeconfig,
		Manifests:    n.Manifests,
		AllowOnError: n.OnError == "allow",
		Timeout:      DefaultTimeout,
		StateDir:     n.StateDir,
		LogFile:      n.LogFile,
		Backend:      cmp.Or(n.Backend, backend.Auto),
		Options: decision.Options{
			DirectInit: n.DirectInitContainers,
			Gated:      n.RedirectAfterProxyStart,
		},
	}
	var ok bool
	if c.Dialect, ok = mesh.Find(n.Mesh); !ok {
		bad("mesh: %q is none of %s", n.Mesh, strings.Join(mesh.Names(), ", "))
	}
	if d, err := c.Dialect.With(n.Proxy); err == nil {
		c.Dialect = d
	} else if ok {
		bad("%v", err)
	}
	override := func(field, value string, target *string) {
		if value != "" && !mesh.IsName(value) {
			bad("meshConfig.%s: %q is not a Kubernetes name", field, value)
		}
		if value != "" {
			*target = value
		}
	}
	override("namespace", n.MeshConfig.Namespace, &c.Dialect.Config.Namespace)
	override("name", n.MeshConfig.Name, &c.Dialect.Config.Name)
	c.ExcludeNamespaces = decision.DefaultExclusions(c.Dialect)
	if n.ExcludeNamespaces != nil {
		c.ExcludeNamespaces = *n.ExcludeNamespaces
	}
	if (n.AgentSocket == "" && n.Kubeconfig == "") == (n.Manifests == "") {
		bad("agentSocket and kubeconfig, one or both, or else manifests are needed")
	}
	if !slices.Contains(backend.Choices, c.Backend) {
		bad("backend: %q is none of %s", c.Backend, strings.Join(backend.Choices, ", "))
	}
	if c.Gated && c.Backend == backend.IPTables {
		bad("redirectAfterProxyStart: it takes nftables, and backend is %s", backend.IPTables)
	}
	if !slices.Contains([]string{"", "fail", "allow"}, n.OnError) {
		bad("onError: %q is none of fail, allow", n.OnError)
	}
	if n.Timeout != "" {
		t, err := time.ParseDuration(n.Timeout)
		if err != nil || t <= 0 {
			bad("timeout: %q is not a time such as 10s or 500ms", n.Timeout)
		} else {
			c.Timeout = t
		}
	}
	if n.StateDir == "" {
		bad("stateDir: it must not be empty")
		c.StateDir = DefaultStateDir
	}
	if n.LogLevel != "" && c.LogLevel.UnmarshalText([]byte(n.LogLevel)) != nil {
		bad("logLevel: %q is none of debug, info, warn, error", n.LogLevel)
	}
	if wrong != nil {
		return c, errors.New(strings.Join(wrong, "; "))
	}
	return c, nil
}
