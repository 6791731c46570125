// Package agentapi is what the plugin and the node agent say to each other over the agent's Unix socket: one JSON object
// a line, a request and its answer, and then both sides hang up. It is kept free of everything that the plugin's start
// would have to pay for.
package agentapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// Request is one of the three things that the plugin wants of the agent.
type Request struct {
	Lookup *Lookup `json:"lookup,omitempty"`
	Report *Report `json:"report,omitempty"`
	// Ready asks whether a Lookup could be answered now; Answer.Error says why not.
	Ready bool `json:"ready,omitempty"`
}

// Lookup asks for a pod and the configuration of the agent's mesh.
type Lookup struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID is the one that the runtime starts; a cached pod with another is no answer. Empty if the runtime names none.
	UID string `json:"uid"`
}

// Report tells the agent what became of an ADD.
type Report struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Outcome   string `json:"outcome"` // programmed, skipped, allowed or failed
	Reason    string `json:"reason,omitempty"`
	Code      uint   `json:"code,omitempty"` // the CNI error code of a failure
	Backend   string `json:"backend,omitempty"`
	// Fallback is true if the plugin asked the API server itself, because the agent had no answer.
	Fallback bool               `json:"fallback,omitempty"`
	Stages   map[string]float64 `json:"stages"` // milliseconds
}

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

// Tell sends the agent a report and hangs up: nobody waits for what the agent makes of it. patience is how long it waits for
// the agent to take it.
func Tell(ctx context.Context, socket string, r Report, patience time.Duration) error {
	conn, err := dial(ctx, socket, Request{Report: &r}, patience)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Call asks the agent at the socket. patience is how long it waits for the answer; the error is ErrNobody if none comes. If
// nobody listens it fails at once.
func Call(ctx context.Context, socket string, r Request, patience time.Duration) (Answer, error) {
	conn, err := dial(ctx, socket, r, patience)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	var a Answer
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&a); err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	return a, nil
}

// dial connects, with a deadline for all that follows, and sends the request.
func dial(ctx context.Context, socket string, r Request, patience time.Duration) (net.Conn, error) {
	deadline := time.Now().Add(patience)
	conn, err := connect(ctx, socket, deadline)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	if err = conn.SetDeadline(deadline); err == nil {
		err = json.NewEncoder(conn).Encode(r)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	return conn, nil
}

const (
	// connectTime is how long connect tries while the queue of the socket is full. An agent that is not there is found out at
	// once, and one that lives empties its queue in milliseconds, also on a busy node.
	connectTime  = 2 * time.Second
	connectPause = 2 * time.Millisecond
)

// connect connects to the socket. The kernel does not let a connection wait while the socket's queue is full, it fails with
// EAGAIN at once: connect tries again until the agent has accepted some.
func connect(ctx context.Context, socket string, deadline time.Time) (net.Conn, error) {
	if end := time.Now().Add(connectTime); end.Before(deadline) {
		deadline = end
	}
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(connectPause)
	}
}
