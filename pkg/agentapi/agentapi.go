// Package agentapi is the protocol between plugin and node agent over the agent's Unix socket: requests and their answers in turn,
// one JSON object a line. It imports nothing that slows the plugin's start.
package agentapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/pod"
)

// Request is exactly one of these: a lookup, a report, a question about readiness.
type Request struct {
	// Lookup asks for a pod and its mesh's configuration. The agent doesn't answer with a cached pod that has another UID.
	Lookup *pod.ID `json:"lookup,omitempty"`
	// Within is how long the plugin waits for the answer to a Lookup; 0 says nothing.
	Within time.Duration `json:"within,omitempty"`
	Report *Report       `json:"report,omitempty"`
	// Ready asks whether the agent could answer a Lookup now; Answer.Error says why not.
	Ready bool `json:"ready,omitempty"`
}

// Report tells the agent the outcome of an ADD.
type Report struct {
	pod.ID
	Outcome attachment.Outcome `json:"outcome"`
	Reason  string             `json:"reason,omitempty"`
	Code    uint               `json:"code,omitempty"` // the CNI error code of a failure
	Backend string             `json:"backend,omitempty"`
	// Fallback is true if the agent had no answer and the plugin asked the API server.
	Fallback bool               `json:"fallback,omitempty"`
	Stages   map[string]float64 `json:"stages"` // milliseconds, by the names of Stages
}

// CNI error codes of the plugin's own, beside those of the specification.
const (
	CodeRefused   uint = 100 // the pod or the mesh's configuration has to be changed
	CodeDifferent uint = 101 // CHECK found that the kernel's rules differ from those that ADD programmed
)

// The stages of an ADD that are timed, in their order.
const (
	StageConf   = "conf"   // net conf, CNI_ARGS and prevResult are parsed
	StageLookup = "lookup" // pod and mesh configuration have arrived
	StageDecide = "decide" // the rules are known
	StageEnter  = "enter"  // the namespace is locked and its records are read
	StageSave   = "save"   // the record is written
	StageApply  = "apply"  // the kernel has the rules
)

// Stages are the names that Report.Stages may have.
var Stages = []string{StageConf, StageLookup, StageDecide, StageEnter, StageSave, StageApply}

// Answer is the agent's answer to a Lookup. The answer to a Report is empty, and so is a ready agent's to Ready.
type Answer struct {
	Pod    json.RawMessage `json:"pod,omitempty"`
	Config json.RawMessage `json:"config,omitempty"`
	// ConfigAbsent says why Config is missing, as half a sentence.
	ConfigAbsent string `json:"configAbsent,omitempty"`
	// Old says that the API server does not answer and for how long the agent has had this, as a sentence for a warning.
	Old string `json:"old,omitempty"`
	// Error says why there is no answer. NotFound is true if that is because the pod does not exist.
	Error    string `json:"error,omitempty"`
	NotFound bool   `json:"notFound,omitempty"`
}

// MaxLine is the length of the longest request or answer, in bytes.
const MaxLine = 8 << 20

// ErrNobody says that no agent answers at the socket. The caller may ask the API server instead.
var ErrNobody = errors.New("the agent does not answer")

// Conn is a connection to the agent. It carries one request at a time.
type Conn struct {
	conn   *net.UnixConn
	most   *io.LimitedReader // of conn, so that no answer fills the memory
	answer *json.Decoder
}

// Dial connects to the agent's socket, at most until the deadline. An error is ErrNobody.
func Dial(ctx context.Context, socket string, deadline time.Time) (*Conn, error) {
	conn, err := connect(ctx, socket, deadline)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	most := &io.LimitedReader{R: conn}
	return &Conn{conn, most, json.NewDecoder(most)}, nil
}

// Call sends a request and waits for the answer, at most until the deadline. An error is ErrNobody, and the connection can't be
// used any more.
func (c *Conn) Call(r Request, deadline time.Time) (Answer, error) {
	if err := c.send(r, deadline); err != nil {
		return Answer{}, err
	}
	var a Answer
	c.most.N = MaxLine
	if err := c.answer.Decode(&a); err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	return a, nil
}

// Tell sends a report, at most until the deadline. It must be the last request, as Tell does not read the answer. An error is
// ErrNobody.
func (c *Conn) Tell(r Report, deadline time.Time) error {
	// Closing a socket with an unread answer resets the connection, and the agent would count a malformed request.
	if err := c.conn.CloseRead(); err != nil {
		return fmt.Errorf("%w: %w", ErrNobody, err)
	}
	return c.send(Request{Report: &r}, deadline)
}

func (c *Conn) send(r Request, deadline time.Time) error {
	err := c.conn.SetDeadline(deadline)
	if err == nil {
		err = json.NewEncoder(c.conn).Encode(r)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNobody, err)
	}
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Call asks the agent over a connection of its own and waits for the answer for up to patience. An error is ErrNobody. If no
// agent listens, Call fails at once.
func Call(ctx context.Context, socket string, r Request, patience time.Duration) (Answer, error) {
	deadline := time.Now().Add(patience)
	c, err := Dial(ctx, socket, deadline)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	return c.Call(r, deadline)
}

const (
	// connectTime is how long connect retries while the socket's queue is full. A live agent empties its queue in milliseconds,
	// even on a busy node.
	connectTime  = 2 * time.Second
	connectPause = 2 * time.Millisecond
)

// connect connects to the socket. If the socket's queue is full, the kernel fails with EAGAIN at once, so connect retries until the
// agent has accepted some connections.
func connect(ctx context.Context, socket string, deadline time.Time) (*net.UnixConn, error) {
	if end := time.Now().Add(connectTime); end.Before(deadline) {
		deadline = end
	}
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(connectPause)
	}
}
