package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/netconf"
)

// sourcePatience bounds one question to agent or API server.
const sourcePatience = 5 * time.Second

// checkSources says whether ADD could look a pod up by this net conf: at the agent, or else at the API server.
func checkSources(ctx context.Context, conf netconf.Conf, now time.Time) []Check {
	if conf.Manifests != "" {
		_, err := kube.NewManifests(conf.Manifests)
		return []Check{answered(CheckNetConf, "manifests "+conf.Manifests, "correct the files that the net conf names", err)}
	}
	var all []Check
	if conf.AgentSocket != "" {
		all = append(all, answered(CheckAgent, conf.AgentSocket, "see whether detour-agent runs and is ready on this node", askAgent(ctx, conf)))
	}
	if conf.Kubeconfig == "" {
		return all
	}
	all = append(all, checkKubeconfig(conf.Kubeconfig), checkToken(conf.Kubeconfig, now),
		answered(CheckAPIServer, conf.Kubeconfig, "see what the message says of address, certificate, token or rights", askAPI(ctx, conf)))
	return redundant(all)
}

// redundant lowers what is wrong if either the agent or the API server answers: ADD then asks that one.
func redundant(all []Check) []Check {
	agent := all[0].Name == CheckAgent && all[0].Result == Fine
	api := all[len(all)-1].Result == Fine
	for i := range all {
		if (agent || api) && all[i].Result == Wrong {
			all[i].Result = Limited
		}
	}
	return all
}

func answered(name Name, what, do string, err error) Check {
	if err != nil {
		return Check{name, Wrong, err.Error(), do}
	}
	return Check{name, Fine, what, ""}
}

func askAgent(ctx context.Context, conf netconf.Conf) error {
	answer, err := agentapi.Call(ctx, conf.AgentSocket, agentapi.Request{Ready: true}, sourcePatience)
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	if err != nil {
		return fmt.Errorf("ask the agent whether it is ready: %w", err)
	}
	return nil
}

func askAPI(ctx context.Context, conf netconf.Conf) error {
	ctx, cancel := context.WithTimeout(ctx, sourcePatience)
	defer cancel()
	api, err := kube.NewAPI(conf.Kubeconfig)
	if err != nil {
		return err
	}
	return api.Ready(ctx, conf.Dialect.Config)
}

func checkKubeconfig(path string) Check {
	_, err := kube.NewAPI(path)
	c := answered(CheckKubeconfig, path, "see detour-agent's log: it writes kubeconfig and token", err)
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		c.Result = worst([]Result{c.Result, Limited})
		c.Found += fmt.Sprintf("; its mode is %04o", info.Mode().Perm())
		c.Do = "chmod 0600 " + path
	}
	return c
}

// checkToken compares the token's times with this node's clock.
func checkToken(kubeconfig string, now time.Time) Check {
	from, until, err := kube.TokenTimes(kubeconfig)
	c := Check{Name: CheckToken, Result: Fine, Found: "it has no end"}
	switch {
	case err != nil:
		c.Result, c.Found, c.Do = Wrong, err.Error(), "see detour-agent's log: it writes kubeconfig and token"
	case !until.IsZero() && now.After(until):
		c.Result, c.Found = Wrong, fmt.Sprintf("it expired at %s, and the node's clock says %s", stamp(until), stamp(now))
		c.Do = "see whether detour-agent runs on this node, which renews it, and whether the clock is right"
	case now.Before(from):
		c.Result, c.Found = Wrong, fmt.Sprintf("it is valid from %s, and the node's clock says %s", stamp(from), stamp(now))
		c.Do = "set the node's clock: it is late"
	case !until.IsZero():
		c.Found = "it expires at " + stamp(until)
	}
	return c
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
