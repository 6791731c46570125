package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

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
		if of.pod == nil && v.inside {
			return nil, nil, fmt.Errorf("%s runs inside a pod: name one instead of %s", v.name, of)
		}
		if err := c.checkNode(ctx, of.node); err != nil {
			return nil, nil, err
		}
	}
	args, err = c.addresses(ctx, args, r.namespace)
	return targets, args, err
}

func (o *options) askOne(ctx context.Context, s session, t tool, v verb, of target, args []string) error {
	env := screen(s.stdout)
	if v.inside {
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

// screen tells detourctl, which writes to a log, what the reader has: two streams, and a terminal perhaps.
func screen(stdout io.Writer) []corev1.EnvVar {
	env := []corev1.EnvVar{{Name: "DETOURCTL_STDERR_MARK", Value: stderrMark}}
	file, ok := stdout.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return env
	}
	if width, _, err := term.GetSize(int(file.Fd())); err == nil {
		env = append(env, corev1.EnvVar{Name: "COLUMNS", Value: strconv.Itoa(width)})
	}
	if os.Getenv("NO_COLOR") == "" {
		env = append(env, corev1.EnvVar{Name: "CLICOLOR_FORCE", Value: "1"})
	}
	return env
}

func printYAML(out io.Writer, object any) error {
	text, err := yaml.Marshal(object)
	if err == nil {
		_, err = fmt.Fprintf(out, "---\n%s", text)
	}
	return err
}
