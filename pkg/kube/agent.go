package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
)

// patience is how long the agent may take to answer: it has the answer in memory, or nobody is there.
const patience = 100 * time.Millisecond

// Agent looks objects up at the node agent, and at the API server if the agent does not answer. It is safe for concurrent
// use.
type Agent struct {
	socket   string
	fallback func() (*API, error) // nil: there is none
}

// NewAgent prepares to ask the agent at a Unix socket; it makes no request. kubeconfig is the way to the API server if
// the agent does not answer, "" if there is none. It is not read before it is needed.
func NewAgent(socket, kubeconfig string) *Agent {
	a := &Agent{socket: socket}
	if kubeconfig != "" {
		a.fallback = func() (*API, error) { return NewAPI(kubeconfig) }
	}
	return a
}

// Lookup asks the agent and then, if that gives no answer, the API server as API.Lookup does. If there is none to ask, or it
// refuses the token, Lookup tries the agent again until ctx ends: the token is bound to an agent's pod and ends with it, and an
// agent that is being replaced is back in seconds.
func (a *Agent) Lookup(ctx context.Context, r Request) (Objects, error) {
	for attempt := 1; ; attempt++ {
		objects, err := a.ask(ctx, r)
		if err == nil || errors.Is(err, ErrNotFound) {
			return objects, err
		}
		if a.fallback != nil {
			api, apiErr := a.fallback()
			if apiErr != nil {
				return Objects{}, errors.Join(err, apiErr)
			}
			if objects, err = api.Lookup(ctx, r); !tokenRefused(err) {
				return objects, err
			}
		}
		sleep(ctx, pause(attempt, err))
		if ctx.Err() != nil {
			return Objects{}, fmt.Errorf("%w; is detour-agent running on this node?", err)
		}
	}
}

func tokenRefused(err error) bool {
	status, ok := errors.AsType[*StatusError](err)
	return ok && status.Code == http.StatusUnauthorized
}

// Ready reports whether a Lookup could be answered now.
func (a *Agent) Ready(ctx context.Context, c ConfigRef) error {
	_, err := a.ask(ctx, Request{Namespace: c.Namespace, Name: probePod, Config: c})
	if err == nil || errors.Is(err, ErrNotFound) {
		return nil
	}
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
	answer, err := agentapi.Call(ctx, a.socket, agentapi.Request{
		Lookup: &agentapi.Lookup{Namespace: r.Namespace, Name: r.Name, UID: r.UID},
	}, patience)
	switch {
	case err != nil:
		return Objects{}, fmt.Errorf("ask the agent for pod %s/%s: %w", r.Namespace, r.Name, err)
	case answer.NotFound:
		return Objects{}, fmt.Errorf("ask the agent for pod %s/%s: %w", r.Namespace, r.Name, ErrNotFound)
	case answer.Error != "":
		return Objects{}, fmt.Errorf("ask the agent for pod %s/%s: %s", r.Namespace, r.Name, answer.Error)
	}
	return Objects{Pod: answer.Pod, Config: answer.Config, ConfigAbsent: answer.ConfigAbsent}, nil
}
