package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// addressFlags are detourctl's flags whose value may name a service or a pod.
var addressFlags = []string{"--to", "--from"}

// addresses replaces svc/NAME[:PORT] and pod/NAME[:PORT] in the values of the address flags by their addresses.
func (c client) addresses(ctx context.Context, args []string, namespace string) ([]string, error) {
	args = slices.Clone(args)
	protocol := protocolIn(args)
	for i, arg := range args {
		flag, value, joined := strings.Cut(arg, "=")
		if !slices.Contains(addressFlags, flag) || !joined && i+1 == len(args) {
			continue
		}
		at := i
		if !joined {
			at, value = i+1, args[i+1]
		}
		if !strings.Contains(value, "/") {
			continue
		}
		addr, err := c.address(ctx, value, namespace, protocol)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", flag, value, err)
		}
		if joined {
			addr = flag + "=" + addr
		}
		args[at] = addr
	}
	return args, nil
}

// protocolIn is that of --proto, TCP without.
func protocolIn(args []string) corev1.Protocol {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--proto="); ok {
			return corev1.Protocol(strings.ToUpper(value))
		}
		if arg == "--proto" && i+1 < len(args) {
			return corev1.Protocol(strings.ToUpper(args[i+1]))
		}
	}
	return corev1.ProtocolTCP
}

// address returns what svc/NAME[:PORT] or pod/NAME[:PORT] stands for.
func (c client) address(ctx context.Context, text, namespace string, protocol corev1.Protocol) (string, error) {
	text, port, _ := strings.Cut(text, ":")
	r, err := parseReference(text, namespace)
	switch {
	case err != nil:
		return "", err
	case !strings.Contains(text, "/"):
	case slices.Contains(podNames, r.kind):
		pod, err := c.pod(ctx, r.namespace, r.name)
		if err != nil {
			return "", missing(err, r)
		}
		return podAddress(pod, port)
	case slices.Contains(serviceNames, r.kind):
		var service corev1.Service
		if err := c.get(ctx, path("v1", r.namespace, "services", r.name), &service); err != nil {
			return "", missing(err, r)
		}
		return serviceAddress(&service, port, protocol)
	}
	return "", errors.New("an address is IP:PORT, svc/NAME:PORT or pod/NAME:PORT")
}

func podAddress(pod *corev1.Pod, port string) (string, error) {
	if pod.Status.PodIP == "" {
		return "", fmt.Errorf("pod %s/%s has no address", pod.Namespace, pod.Name)
	}
	if port == "" {
		return pod.Status.PodIP, nil
	}
	return net.JoinHostPort(pod.Status.PodIP, port), nil
}

// serviceAddress returns the service's ClusterIP and port. The port may be its name, or "" if there is only one.
func serviceAddress(s *corev1.Service, port string, protocol corev1.Protocol) (string, error) {
	name := fmt.Sprintf("service %s/%s", s.Namespace, s.Name)
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		return "", fmt.Errorf("%s stands for the name %s: give an address of it", name, s.Spec.ExternalName)
	case s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.ClusterIP == "":
		return "", fmt.Errorf("%s has no ClusterIP: its name resolves to its pods' addresses, so give pod/NAME:PORT", name)
	}
	var fitting []corev1.ServicePort
	var all []string
	for _, p := range s.Spec.Ports {
		number := strconv.Itoa(int(p.Port))
		all = append(all, number+"/"+string(p.Protocol))
		if p.Protocol == protocol && (port == "" || port == p.Name || port == number) {
			fitting = append(fitting, p)
		}
	}
	if len(fitting) != 1 {
		return "", fmt.Errorf("%s has %s: choose one by svc/NAME:PORT and --proto", name, strings.Join(all, ", "))
	}
	return net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(int(fitting[0].Port))), nil
}
