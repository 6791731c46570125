// Package agentapi is what the plugin and the node agent say to each other over the agent's Unix socket: one JSON object a
// line, requests and their answers in turn. It imports nothing that the plugin would pay for at its start.
package agentapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/pod"
)

// Request is one of the three things that the plugin wants of the agent.
type Request struct {
	// Lookup asks for a pod and the configuration of the agent's mesh. A cached pod with another UID is no answer.
	Lookup *pod.ID `json:"lookup,omitempty"`
	Report *Report `json:"report,omitempty"`
	// Ready asks whether a Lookup could be answered now; Answer.Error says why not.
	Ready bool `json:"ready,omitempty"`
}

// Report tells the agent what became of an ADD.
type Report struct {
	pod.ID
	Outcome attachment.Outcome `json:"outcome"`
	Reason  string             `json:"reason,omitempty"`
	Code    uint               `json:"code,omitempty"` // the CNI error code of a failure
	Backend string             `json:"backend,omitempty"`
	// Fallback is true if the plugin asked the API server itself, because the agent had no answer.
	Fallback bool               `json:"fallback,omitempty"`
	Stages   map[string]float64 `json:"stages"` // milliseconds, by the names of Stages
}

// CNI error codes of the plugin's own, beside those of the specification.
const (
	CodeRefused   uint = 100 // the pod or the mesh's configuration has to be changed
	CodeDifferent uint = 101 // CHECK found that the kernel's rules differ from those that ADD programmed
)

// The stages of an ADD whose time is taken, in their order.
const (
	StageConf   = "conf"   // the net conf is parsed
	StageLookup = "lookup" // pod and mesh configuration are there
	StageDecide = "decide" // the rules are known
	StageEnter  = "enter"  // the namespace is locked and its records are read
	StageSave   = "save"   // the record is written
	StageApply  = "apply"  // the kernel has the rules
)

// Stages are the names that Report.Stages may have.
var Stages = []string{StageConf, StageLookup, StageDecide, StageEnter, StageSave, StageApply}

// Answer is the agent's answer to a Lookup; to a Report, and to Ready if the agent is, it is empty.
type Answer struct {
	Pod    json.RawMessage `json:"pod,omitempty"`
	Config json.RawMessage `json:"config,omitempty"`
	// ConfigAbsent says why Config is missing, as half a sentence.
	ConfigAbsent string `json:"configAbsent,omitempty"`
	// Error is why there is no answer, and NotFound whether that is because there is no such pod.
	Error    string `json:"error,omitempty"`
	NotFound bool   `json:"notFound,omitempty"`
}

// MaxLine is the length of the longest request or answer, in bytes.
const MaxLine = 8 << 20

// ErrNobody says that nobody answers at the socket, so that whoever asks may ask elsewhere.
var ErrNobody = errors.New("the agent does not answer")

// Conn is a connection to the agent, for one request after the other.
type Conn struct {
	conn   *net.UnixConn
	answer *json.Decoder
}

// Dial connects to the agent's socket, at most until the deadline. The error is ErrNobody.
func Dial(ctx context.Context, socket string, deadline time.Time) (*Conn, error) {
	conn, err := connect(ctx, socket, deadline)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	return &Conn{conn, json.NewDecoder(conn)}, nil
}

// Call sends a request and waits for the answer, at most until the deadline. The error is ErrNobody if none comes; the connection
// is of no use then.
func (c *Conn) Call(r Request, deadline time.Time) (Answer, error) {
	var a Answer
	err := c.send(r, deadline)
	if err == nil {
		if err = c.answer.Decode(&a); err != nil {
			err = fmt.Errorf("%w: %w", ErrNobody, err)
		}
	}
	return a, err
}

// Tell sends a report, at most until the deadline. It must be the last request: nobody reads the answer. The error is ErrNobody.
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

// Call asks the agent over a connection of its own. patience is how long it waits for the answer; the error is ErrNobody if none
// comes. If nobody listens it fails at once.
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
	// connectTime is how long connect tries while the queue of the socket is full. An agent that is not there is found out at
	// once, and one that lives empties its queue in milliseconds, also on a busy node.
	connectTime  = 2 * time.Second
	connectPause = 2 * time.Millisecond
)

// connect connects to the socket. The kernel does not let a connection wait while the socket's queue is full, it fails with
// EAGAIN at once: connect tries again until the agent has accepted some.
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
