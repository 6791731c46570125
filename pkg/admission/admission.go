// Package admission says what becomes of pods, workloads and mesh configurations at admission: which changes free an injected pod of
// its mesh's init container, and what ADD would refuse or warn of. It is pure. The policies of deploy/admission do the same changes in CEL.
package admission

// Change is one of the changes of an injected pod. Each is idempotent.
type Change string

// The changes. A namespace asks for each by the label of its name: detour.io/remove-init=enabled.
const (
	RemoveInit      Change = "remove-init"
	NativeSidecar   Change = "native-sidecar" // includes RemoveInit
	RestrictSidecar Change = "restrict-sidecar"
)

// Op is an operation of a JSON patch (RFC 6902).
type Op struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from,omitempty"`
	Value any    `json:"value,omitempty"`
}

// Verdict is what comes out of a check. Without a Denial the object is taken.
type Verdict struct {
	Denial   string // one sentence
	Warnings []string
}
