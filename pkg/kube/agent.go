package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
)

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

// Lookup asks the agent and then, if that gives no answer, the API server as API.Lookup does; Objects.Fallback says so, also
// beside an error. If there is no API server to ask, or it refuses the token, Lookup tries the agent again until ctx ends: the
// token is bound to an agent's pod and ends with it, and an agent that is being replaced is back in seconds. ctx needs a
// deadline.
func (a *Agent) Lookup(ctx context.Context, r Request) (Objects, error) {
	var refused error
	for attempt := 1; ; attempt++ {
		objects, err := a.ask(ctx, r)
		if err == nil || errors.Is(err, ErrNotFound) {
			return objects, err
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
		if ctx.Err() != nil {
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

// patience is how long the agent may take to answer. It answers from memory, or as soon as the API server does, but on a busy
// node it may have to wait for a processor. One that hangs must leave time to ask the API server instead: half of what there is.
func (a *Agent) patience(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	if a.fallback == nil {
		return left
	}
	return left / 2
}

// Ready reports whether a Lookup could be answered now. An agent knows that without a request to the API server. ctx needs a
// deadline.
func (a *Agent) Ready(ctx context.Context, c ConfigRef) error {
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
	answer, err := agentapi.Call(ctx, a.socket, agentapi.Request{
		Lookup: &agentapi.Lookup{Namespace: r.Namespace, Name: r.Name, UID: r.UID},
	}, a.patience(ctx))
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
