package cniplugin

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
	"github.com/detour-cni/detour/pkg/mesh"
)

// Defaults of the net conf.
const (
	DefaultTimeout  = 10 * time.Second
	DefaultStateDir = "/run/detour"
)

// netConf is the plugin's network configuration as JSON, with everything that the CNI specification or a runtime may
// put beside it; any other field is a mistake.
type netConf struct {
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
	Dialect           mesh.Dialect
	AgentSocket       string
	Kubeconfig        string
	Manifests         string
	ExcludeNamespaces []string
	// DirectInit are the namespaces whose pods' init containers go direct.
	DirectInit []string
	// AfterProxyStart leaves what goes out of a pod alone until its proxy sends its first packet.
	AfterProxyStart bool
	// Backend is one of backend.Choices.
	Backend      string
	AllowOnError bool
	Timeout      time.Duration
	StateDir     string
	LogFile      string
	LogLevel     slog.Level
}

// ParseConf reads a net conf. Every error is a CNI error with code 7 that names the field. Beside the error there is a
// Conf with all that could be used, for DEL, which has to succeed even so.
func ParseConf(stdin []byte) (Conf, error) {
	var n netConf
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
func (n *netConf) decode(stdin []byte) error {
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

func (n *netConf) decodeStrictly(stdin []byte) error {
	d := json.NewDecoder(bytes.NewReader(stdin))
	d.DisallowUnknownFields()
	return d.Decode(n)
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

func (n netConf) conf() (Conf, error) {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	c := Conf{
		PluginConf:   n.PluginConf,
		AgentSocket:  n.AgentSocket,
		Kubeconfig:   n.Kubeconfig,
		Manifests:    n.Manifests,
		DirectInit:   n.DirectInitContainers,
		AllowOnError: n.OnError == "allow",
		Timeout:      DefaultTimeout,
		StateDir:     n.StateDir,
		LogFile:      n.LogFile,

		AfterProxyStart: n.RedirectAfterProxyStart,
		Backend:         cmp.Or(n.Backend, backend.Auto),
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
	c.ExcludeNamespaces = []string{"kube-system", c.Dialect.Config.Namespace}
	if n.ExcludeNamespaces != nil {
		c.ExcludeNamespaces = *n.ExcludeNamespaces
	}
	if (n.AgentSocket == "" && n.Kubeconfig == "") == (n.Manifests == "") {
		bad("agentSocket and kubeconfig, one or both, or else manifests are needed")
	}
	if !slices.Contains(backend.Choices, c.Backend) {
		bad("backend: %q is none of %s", c.Backend, strings.Join(backend.Choices, ", "))
	}
	if c.AfterProxyStart && c.Backend == backend.IPTables {
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

// identity is the pod that the runtime names in CNI_ARGS; the zero identity is a container that is not Kubernetes'. Podman
// names its containers by K8S_POD_NAME as well, but without a namespace.
type identity struct{ Namespace, Name, UID string }

func (i identity) String() string { return i.Namespace + "/" + i.Name }

// parseArgs reads CNI_ARGS. Errors are CNI errors with code 4.
func parseArgs(args string) (identity, error) {
	var a struct {
		types.CommonArgs
		K8S_POD_NAMESPACE types.UnmarshallableString //nolint:revive // the name is the key
		K8S_POD_NAME      types.UnmarshallableString //nolint:revive
		K8S_POD_UID       types.UnmarshallableString //nolint:revive
		// containerd and CRI-O pass it too
		K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive
	}
	fail := func(format string, args ...any) (identity, error) {
		return identity{}, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: "+fmt.Sprintf(format, args...), "")
	}
	if err := types.LoadArgs(args, &a); err != nil {
		return fail("%v", err)
	}
	id := identity{string(a.K8S_POD_NAMESPACE), string(a.K8S_POD_NAME), string(a.K8S_POD_UID)}
	if id.Namespace == "" {
		return identity{}, nil
	}
	if !mesh.IsName(id.Namespace) {
		return fail("K8S_POD_NAMESPACE %q is not a Kubernetes name", id.Namespace)
	}
	if !mesh.IsName(id.Name) {
		return fail("K8S_POD_NAME %q is not a Kubernetes name", id.Name)
	}
	return id, nil
}
