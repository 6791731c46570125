package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/mesh"
)

// Agent asks the node agent, and the API server if the agent does not answer. It is not safe for concurrent use: the connection of
// a Lookup also carries the Report.
type Agent struct {
	socket   string
	fallback func() (*API, error) // nil: there is none
	conn     *agentapi.Conn       // of the last Lookup that got an answer
}

// NewAgent prepares to ask the agent at a Unix socket; it makes no request. kubeconfig is for the API server, which is asked if the
// agent does not answer; "" means never. It is read only when needed.
func NewAgent(socket, kubeconfig string) *Agent {
	a := &Agent{socket: socket}
	if kubeconfig != "" {
		a.fallback = func() (*API, error) { return NewAPI(kubeconfig) }
	}
	return a
}

// enough time for the agent to find out why there is no answer.
const enough = time.Second

// Lookup asks the agent, and if it has no answer the API server as API.Lookup does; Objects.Fallback says so, even with an error.
// If there is no API server to ask, or it refuses the token, Lookup retries the agent until ctx ends: the token is bound to an
// agent's pod and expires with it, and an agent that is being replaced is back within seconds. The error then is what the agent has
// said last, if anything. ctx needs a deadline.
func (a *Agent) Lookup(ctx context.Context, r Request) (Objects, error) {
	var refused, told error
	for attempt := 1; ; attempt++ {
		left := a.patience(ctx)
		objects, err := a.ask(ctx, r)
		if err == nil || errors.Is(err, ErrNotFound) {
			return objects, err
		}
		if !errors.Is(err, agentapi.ErrNobody) && (told == nil || left > enough) {
			told = err
		}
		if a.fallback != nil {
			objects, err = a.askInstead(ctx, r, err)
			switch {
			case tokenRefused(err):
				refused = err
			case refused == nil || ctx.Err() == nil:
				return objects, err
			}
		}
		sleep(ctx, pause(attempt, err))
		switch {
		case ctx.Err() == nil:
		case refused == nil && told != nil:
			return objects, told
		default:
			return objects, fmt.Errorf("%w; is detour-agent running on this node?", cmp.Or(refused, err))
		}
	}
}

// askInstead asks the API server, because of why.
func (a *Agent) askInstead(ctx context.Context, r Request, why error) (Objects, error) {
	api, err := a.fallback()
	if err != nil {
		return Objects{}, errors.Join(why, err)
	}
	objects, err := api.Lookup(ctx, r)
	objects.Fallback = why.Error()
	return objects, err
}

func tokenRefused(err error) bool {
	status, ok := errors.AsType[*StatusError](err)
	return ok && status.Code == http.StatusUnauthorized
}

// patience is how long the agent may take to answer. Usually it answers from memory, but on a busy node it may wait for a processor.
// If it hangs, half of the time must be left for the API server.
func (a *Agent) patience(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	if a.fallback == nil {
		return left
	}
	return left / 2
}

// Ready fails unless a Lookup could be answered now. The agent knows that without asking the API server. ctx needs a deadline.
func (a *Agent) Ready(ctx context.Context, c mesh.ConfigRef) error {
	answer, err := agentapi.Call(ctx, a.socket, agentapi.Request{Ready: true}, a.patience(ctx))
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("ask the agent whether it is ready: %w", err)
	if a.fallback == nil {
		return err
	}
	api, apiErr := a.fallback()
	if apiErr != nil {
		return errors.Join(err, apiErr)
	}
	return api.Ready(ctx, c)
}

func (a *Agent) ask(ctx context.Context, r Request) (Objects, error) {
	answer, err := a.call(ctx, agentapi.Request{Lookup: &r.ID, Within: a.patience(ctx)})
	switch {
	case err != nil:
		return Objects{}, fmt.Errorf("ask the agent for pod %s: %w", r.ID, err)
	case answer.NotFound:
		return Objects{}, fmt.Errorf("ask the agent for pod %s: %w", r.ID, ErrNotFound)
	case answer.Error != "":
		return Objects{}, fmt.Errorf("ask the agent for pod %s: %s", r.ID, answer.Error)
	}
	return Objects{Pod: answer.Pod, Config: answer.Config, ConfigAbsent: answer.ConfigAbsent, Old: answer.Old}, nil
}

// call asks over a new connection and keeps it for the report.
func (a *Agent) call(ctx context.Context, r agentapi.Request) (agentapi.Answer, error) {
	a.hangUp()
	deadline := time.Now().Add(a.patience(ctx))
	conn, err := agentapi.Dial(ctx, a.socket, deadline)
	if err != nil {
		return agentapi.Answer{}, err
	}
	answer, err := conn.Call(r, deadline)
	if err != nil {
		conn.Close()
		return answer, err
	}
	a.conn = conn
	return answer, nil
}

func (a *Agent) hangUp() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// Report tells the agent the outcome of an ADD, over the Lookup's connection, or over a new one if that is gone. It waits at most
// until the deadline.
func (a *Agent) Report(ctx context.Context, r agentapi.Report, deadline time.Time) error {
	defer a.hangUp()
	if a.conn != nil && a.conn.Tell(r, deadline) == nil {
		return nil
	}
	conn, err := agentapi.Dial(ctx, a.socket, deadline)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Tell(r, deadline)
}
