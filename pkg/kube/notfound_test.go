package kube

import (
	"errors"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
)

// The agent has asked the API server before it says so: nobody is asked again, and nobody else.
func TestThatThereIsNoPodIsTheAgentsLastWord(t *testing.T) {
	s := newServer(t, true, routes{podPath: answer(200, podJSON), newConfig: answer(200, configJSON)})
	for name, fallback := range map[string]string{"with the API server": kubeconfig(t, s.URL, s.ca()), "alone": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket, asked := agent(t, &agentapi.Answer{NotFound: true, Error: "get pods shop/web: 404"}, cached)
			got, err := NewAgent(socket, fallback).Lookup(within(t, time.Minute), request)
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("got %s, %v", got.Pod, err)
			}
			if len(asked) != 1 || s.connections() != 0 {
				t.Errorf("the agent was asked %d times, and the API server over %d connections", len(asked), s.connections())
			}
		})
	}
}
