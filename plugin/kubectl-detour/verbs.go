package main

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// verb is one of detourctl's verbs and what it needs to be run for a target.
type verb struct {
	name, question string
	about          string
	examples       string
	positional     bool     // detourctl takes the pod as an argument, and none for the node
	every          bool     // it looks at all pods of a workload, not at the first ready one
	stream         []string // the flags with which it answers until it is stopped
	inside         bool     // it runs inside the pod, without any right
	pod            rights
	node           *rights // nil if it is about pods only
}

// rights are what detourctl's container gets.
type rights struct {
	capabilities []corev1.Capability
	folders      []string // of the host, read-only
	processes    bool     // it sees the host's processes
}

// The rights of whom looks at a pod: NET_ADMIN lists netfilter's rules and connections, SYS_ADMIN enters the pod's network
// namespace, SYS_PTRACE opens it through another user's process. The kubelet's log folders tell which process is whose.
var (
	intoPod = rights{
		capabilities: []corev1.Capability{"NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"},
		folders:      []string{"/var/log/pods"},
		processes:    true,
	}
	verify = rights{
		// DAC_READ_SEARCH lists other users' open files: who listens at a port.
		capabilities: append([]corev1.Capability{"DAC_READ_SEARCH"}, intoPod.capabilities...),
		// detour's records and socket are in /run/detour, which not every node has, its net conf is where the runtime's are.
		folders:   []string{"/etc/cni/net.d", "/run", "/var/log/pods"},
		processes: true,
	}
	conns = rights{capabilities: verify.capabilities, folders: []string{"/run", "/var/log/pods"}, processes: true}
)

var verbs = []verb{
	{
		name:     "verify",
		question: "Is this pod, or every pod of this node, as it should be?",
		about:    "Of a workload, every pod that runs is verified; the exit code is the highest.\n",
		examples: `  kubectl detour verify pod/web-0 -n shop
  kubectl detour verify deploy/web -o json
  kubectl detour verify node/worker-1`,
		positional: true,
		every:      true,
		pod:        verify,
		node:       &verify,
	},
	{
		name:     "trace",
		question: "Where does this packet go, and which rule decides?",
		about: `Of a workload, the first ready pod is taken. --to and --from may be svc/NAME[:PORT], which stands for the service's ClusterIP, and
pod/NAME[:PORT], which stands for the pod's address.
`,
		examples: `  kubectl detour trace deploy/web --out --to svc/redis:6379
  kubectl detour trace node/worker-1 --in cni0 --from pod/web-0 --to svc/data/redis:6379
  kubectl detour trace pod/web-0 --live --out --to 203.0.113.1:443`,
		stream: []string{"--live"},
		pod:    intoPod,
		node:   &rights{capabilities: []corev1.Capability{"NET_ADMIN"}},
	},
	{
		name:     "conns",
		question: "Which connections does the pod have, and did the proxy pass them on?",
		about:    "Of a workload, the first ready pod is taken.\n",
		examples: `  kubectl detour conns pod/web-0
  kubectl detour conns deploy/web --watch`,
		stream: []string{"--watch", "-w"},
		pod:    conns,
	},
	{
		name:     "probe",
		question: "Does redirection work in this pod?",
		about: `The probe runs inside the pod, as an ephemeral container that fits the Pod Security Standard restricted. It ends within seconds,
also after Ctrl-C; Kubernetes keeps its entry in the pod's specification until the pod is deleted.
`,
		examples: `  kubectl detour probe pod/web-0`,
		inside:   true,
	},
}

func (v verb) rights(of target) rights {
	if of.pod == nil {
		return *v.node
	}
	return v.pod
}

// targetArgs tell detourctl the target.
func (v verb) targetArgs(of target) []string {
	switch {
	case of.pod == nil && v.positional:
		return nil
	case of.pod == nil:
		return []string{"--node"}
	}
	args := []string{of.pod.Namespace + "/" + of.pod.Name, "--pod-uid", of.uid()}
	if !v.positional {
		args = append([]string{"--pod"}, args...)
	}
	return args
}

// streams reports whether the arguments make detourctl answer until it is stopped.
func (v verb) streams(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return slices.Contains(v.stream, strings.TrimSuffix(arg, "=true")) })
}

// rightsTable says what detourctl's pod may do, for each verb and kind of target.
func rightsTable() string {
	var b strings.Builder
	b.WriteString("detourctl's pod is on the host's network and has no ServiceAccount token. What else it gets:\n\n")
	for _, row := range append([][]string{{"VERB", "OF", "CAPABILITIES", "PROCESSES", "FOLDERS (read-only)"}}, rightsRows()...) {
		fmt.Fprintf(&b, "  %-7s %-5s %-50s %-10s %s\n", row[0], row[1], row[2], row[3], row[4])
	}
	return strings.TrimRight(b.String(), "\n")
}

func rightsRows() [][]string {
	var rows [][]string
	row := func(v verb, kind string, r rights) {
		rows = append(rows, []string{v.name, kind, r.list(), r.seen(), r.mounted()})
	}
	for _, v := range verbs {
		if v.inside {
			rows = append(rows, []string{v.name, "pod", "none", "the pod's", "none"})
			continue
		}
		row(v, "pod", v.pod)
		if v.node != nil {
			row(v, "node", *v.node)
		}
	}
	return rows
}

func (r rights) list() string {
	var names []string
	for _, c := range r.capabilities {
		names = append(names, string(c))
	}
	return strings.Join(names, ", ")
}

func (r rights) seen() string {
	if r.processes {
		return "the host's"
	}
	return "its own"
}

func (r rights) mounted() string {
	if r.folders == nil {
		return "none"
	}
	return strings.Join(r.folders, ", ")
}
