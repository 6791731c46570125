package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/mesh"
)

// wire is the net conf as JSON. Any other field is a mistake.
type wire struct {
	CNIVersion       string               `json:"cniVersion"`
	Name             string               `json:"name"`
	Type             string               `json:"type"`
	PrevResult       json.RawMessage      `json:"prevResult"`
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`

	// The CNI specification and runtimes put these there, and detour ignores them. As raw JSON they cost nothing, while
	// encoding/json would have to prepare each type.
	Capabilities  json.RawMessage `json:"capabilities"`
	IPAM          json.RawMessage `json:"ipam"`
	DNS           json.RawMessage `json:"dns"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	Args          json.RawMessage `json:"args"`

	Mesh       string `json:"mesh"`
	MeshConfig struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"meshConfig"`
	AgentSocket             string         `json:"agentSocket"`
	Kubeconfig              string         `json:"kubeconfig"`
	Manifests               string         `json:"manifests"`
	Proxy                   *mesh.Override `json:"proxy"`
	ExcludeNamespaces       *[]string      `json:"excludeNamespaces"`
	DirectInitContainers    []string       `json:"directInitContainers"`
	RedirectAfterProxyStart bool           `json:"redirectAfterProxyStart"`
	Backend                 string         `json:"backend"`
	OnError                 string         `json:"onError"`
	Timeout                 string         `json:"timeout"`
	StateDir                string         `json:"stateDir"`
	LogFile                 string         `json:"logFile"`
	LogLevel                string         `json:"logLevel"`
}

// specPrefix begins the keys that the CNI specification reserves. Runtimes may send them with any verb.
const specPrefix = "cni.dev/"

// decode reads the net conf strictly, except for reserved keys that detour doesn't use.
func (n *wire) decode(stdin []byte) error {
	err := n.decodeStrictly(stdin)
	if err == nil || !strings.HasPrefix(err.Error(), unknownField+`"`+specPrefix) {
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &fields); err != nil {
		return err
	}
	maps.DeleteFunc(fields, func(key string, _ json.RawMessage) bool {
		return strings.HasPrefix(key, specPrefix) && key != specPrefix+"valid-attachments"
	})
	if stdin, err = json.Marshal(fields); err != nil {
		return err
	}
	return n.decodeStrictly(stdin)
}

// unknownField begins encoding/json's error for such a field.
const unknownField = "json: unknown field "

func (n *wire) decodeStrictly(stdin []byte) error {
	d := json.NewDecoder(bytes.NewReader(stdin))
	d.DisallowUnknownFields()
	if err := d.Decode(n); err != nil {
		return err
	}
	if present(n.PrevResult) && n.PrevResult[0] != '{' {
		return errors.New("prevResult: want an object")
	}
	return nil
}

func present(value json.RawMessage) bool { return value != nil && string(value) != "null" }

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
