package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// ask runs detourctl's verb for what the user named, and returns its exit code; of several targets, the highest.
func (o *options) ask(command *cobra.Command, v verb, rest []string) error {
	ctx := command.Context()
	name, args, err := question(v, rest)
	if err != nil {
		return err
	}
	c, namespace, err := o.client()
	if err != nil {
		return err
	}
	targets, args, err := c.plan(ctx, v, name, args, namespace)
	if err != nil {
		return err
	}
	t, err := o.tool(ctx, c)
	if err != nil {
		return err
	}
	s := session{c, command.OutOrStdout(), command.ErrOrStderr(), o.startTime}
	highest := exitCode(0)
	for _, of := range targets {
		if of.chosen {
			fmt.Fprintln(s.stderr, of)
		}
		err := o.askOne(ctx, s, t, v, of, args)
		var code exitCode
		if err != nil && !errors.As(err, &code) {
			return err
		}
		highest = max(highest, code)
	}
	if highest != 0 {
		return highest
	}
	return nil
}

// plan finds the targets and makes addresses of the names in detourctl's arguments.
func (c client) plan(ctx context.Context, v verb, name string, args []string, namespace string) ([]target, []string, error) {
	r, err := parseReference(name, namespace)
	if err != nil {
		return nil, nil, err
	}
	targets, err := c.resolve(ctx, r, v.every)
	if err != nil {
		return nil, nil, err
	}
	for _, of := range targets {
		if _, ok := v.rightsFor(of, args); !ok {
			return nil, nil, fmt.Errorf("%s is about a pod: name one instead of %s", v.name, of)
		}
		if err := c.checkNode(ctx, of.node); err != nil {
			return nil, nil, err
		}
	}
	args, err = c.addresses(ctx, args, r.namespace)
	return targets, args, err
}

func (o *options) askOne(ctx context.Context, s session, t tool, v verb, of target, args []string) error {
	env := []corev1.EnvVar{reader(s.stdout)}
	if v.runsInside(args) {
		container := t.containerFor(v, args, env)
		if o.dryRun {
			return printYAML(s.stdout, container)
		}
		return s.inside(ctx, of.pod, container)
	}
	pod := t.podFor(v, of, args, env)
	if o.dryRun {
		return printYAML(s.stdout, pod)
	}
	return s.inPod(ctx, pod)
}

// reader tells detourctl, whose output is a log, of the reader's terminal: its width, 0 if there is none, and whether it has
// colour.
func reader(stdout io.Writer) corev1.EnvVar {
	width, colour := 0, false
	if file, ok := stdout.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		width, _, _ = term.GetSize(int(file.Fd())) // 0 is as good an answer as none
		colour = os.Getenv("NO_COLOR") == ""       //nolint:forbidigo // https://no-color.org
	}
	return corev1.EnvVar{Name: "KUBECTL_DETOUR", Value: fmt.Sprint(width, colour)}
}

func printYAML(out io.Writer, object any) error {
	text, err := yaml.Marshal(object)
	if err == nil {
		_, err = fmt.Fprintf(out, "---\n%s", text)
	}
	return err
}
