package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/tools/clientcmd"
)

// options are kubectl detour's own flags: those of every kubectl command, and where and how detourctl runs.
type options struct {
	kubeconfig    string
	overrides     clientcmd.ConfigOverrides
	image         string
	toolNamespace string
	startTime     time.Duration
	dryRun        bool
}

func (o *options) register(flags *pflag.FlagSet) {
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.AuthOverrideFlags.Username.LongName, names.AuthOverrideFlags.Password.LongName = "", "" // kubectl has neither
	names.ClusterOverrideFlags.APIServer.ShortName = "s"
	clientcmd.BindOverrideFlags(&o.overrides, flags, names)
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "Path to the kubeconfig file to use for CLI requests.")
	flags.StringVar(&o.image, "image", "", "image with /detourctl; default: that of daemonset/"+agentName+" in "+agentNamespace+", else this release's")
	flags.StringVar(&o.toolNamespace, "tool-namespace", "",
		"namespace of detourctl's pod; default: "+agentNamespace+" if there is one, else "+fallbackNamespace)
	flags.DurationVar(&o.startTime, "pod-running-timeout", time.Minute, "how long detourctl's container may take to start")
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the pod as YAML and create nothing")
}

// client prepares a client for the cluster that the flags choose, and returns the namespace that they choose.
func (o *options) client() (client, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &o.overrides)
	namespace, _, err := config.Namespace()
	if err != nil {
		return client{}, "", err
	}
	access, err := config.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return client{}, "", errors.New("there is no kubeconfig: name one by --kubeconfig or KUBECONFIG")
	}
	if err != nil {
		return client{}, "", err
	}
	c, err := newClient(access)
	return c, namespace, err
}

// split separates the arguments that belong to a flag of the set from the rest, which is detourctl's. After "--" everything is.
func split(flags *pflag.FlagSet, args []string) (own, rest []string) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return own, append(rest, args...)
		}
		flag := lookup(flags, arg)
		if flag == nil {
			rest = append(rest, arg)
			continue
		}
		own = append(own, arg)
		if needsValue(flag, arg) && len(args) > 0 {
			own, args = append(own, args[0]), args[1:]
		}
	}
	return own, rest
}

func lookup(flags *pflag.FlagSet, arg string) *pflag.Flag {
	if name, ok := strings.CutPrefix(arg, "--"); ok {
		name, _, _ = strings.Cut(name, "=")
		return flags.Lookup(name)
	}
	if len(arg) > 1 && arg[0] == '-' {
		return flags.ShorthandLookup(arg[1:2])
	}
	return nil
}

// needsValue reports whether the flag's value is the next argument.
func needsValue(flag *pflag.Flag, arg string) bool {
	if flag.NoOptDefVal != "" || strings.Contains(arg, "=") {
		return false
	}
	return strings.HasPrefix(arg, "--") || len(arg) == 2
}

// question splits what is left for detourctl into the target, which comes first, and detourctl's own arguments.
func question(v verb, rest []string) (target string, args []string, err error) {
	switch {
	case len(rest) == 0:
		return "", nil, fmt.Errorf("%[1]s whom? kubectl detour %[1]s TARGET, such as pod/NAME or node/NAME", v.name)
	case strings.HasPrefix(rest[0], "-"):
		return "", nil, fmt.Errorf("name the target ahead of %s: kubectl detour %s TARGET %s", rest[0], v.name, strings.Join(rest, " "))
	case len(rest) > 1 && !strings.HasPrefix(rest[1], "-"):
		return "", nil, fmt.Errorf("one target at a time: %s or %s", rest[0], rest[1])
	}
	return rest[0], rest[1:], nil
}
