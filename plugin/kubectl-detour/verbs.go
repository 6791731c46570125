package main

import (
	"fmt"
	"slices"
	"strings"
)

// verb is one of detourctl's verbs and what it needs to be run for a target.
type verb struct {
	name, question string
	about          string
	examples       string
	positional     bool     // detourctl takes the pod as an argument, and none for the node
	every          bool     // it looks at all pods of a workload, not at the first ready one
	inside         bool     // it runs inside the pod, without any right, unless fromNode is given
	fixed          []string // flags that detourctl always gets
	stream         []string // the flags with which it answers until it is stopped
	rights         []rights // the last that fits holds
}

// rights are what detourctl's container gets.
type rights struct {
	of           string // pod or node
	with         string // a flag, or "" for any
	capabilities string // separated by blanks
	folders      string // of the host, read-only
	processes    bool   // it sees the host's processes
}

// What the capabilities are for: NET_ADMIN lists netfilter's rules and connections. SYS_ADMIN enters a pod's network namespace,
// and SYS_PTRACE opens it by another user's process. DAC_READ_SEARCH lists another user's open files: who has a socket. SETUID
// and SETGID send for another user. SYS_CHROOT enters the node's root folder.
//
// What the folders are for: the kubelet's log folders tell which process is which pod's. detour's records and socket are in
// /run/detour, which not every node has, and its net conf is in /etc/cni/net.d.
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
		rights: []rights{
			{"pod", "", "DAC_READ_SEARCH NET_ADMIN SYS_ADMIN SYS_PTRACE", "/etc/cni/net.d /run /var/log/pods", true},
			{"node", "", "DAC_READ_SEARCH NET_ADMIN SYS_ADMIN SYS_PTRACE", "/etc/cni/net.d /run /var/log/pods", true},
		},
	},
	{
		name:       "doctor",
		question:   "What does detour need of this node, what would it take, and what would fail?",
		about:      "detourctl starts the node's own iptables, in the node's root folder.\n",
		examples:   "  kubectl detour doctor node/worker-1\n",
		positional: true,
		fixed:      []string{"--root", "/proc/1/root"},
		rights: []rights{
			{"node", "", "NET_ADMIN SYS_ADMIN SYS_CHROOT SYS_PTRACE", "", true},
		},
	},
	{
		name:     "trace",
		question: "Where does this packet go, and which rule decides?",
		about: `Of a workload, the first ready pod is taken. --to and --from may be svc/NAME[:PORT], which stands for the service's ClusterIP,
and pod/NAME[:PORT], which stands for the pod's address.
`,
		examples: `  kubectl detour trace deploy/web --out --to svc/redis:6379
  kubectl detour trace node/worker-1 --in cni0 --from pod/web-0 --to svc/data/redis:6379
  kubectl detour trace pod/web-0 --live --out --to 203.0.113.1:443`,
		stream: []string{"--live"},
		rights: []rights{
			{"pod", "", "NET_ADMIN SYS_ADMIN SYS_PTRACE", "/var/log/pods", true},
			{"node", "", "NET_ADMIN", "", false},
			{"pod", "--live", "NET_ADMIN SETGID SETUID SYS_ADMIN SYS_PTRACE", "/var/log/pods", true},
			{"node", "--live", "NET_ADMIN SETGID SETUID", "", false},
		},
	},
	{
		name:     "conns",
		question: "Which connections does the pod have, and did the proxy pass them on?",
		about:    "Of a workload, the first ready pod is taken.\n",
		examples: `  kubectl detour conns pod/web-0
  kubectl detour conns deploy/web --watch`,
		stream: []string{"--watch", "-w"},
		rights: []rights{
			{"pod", "", "DAC_READ_SEARCH NET_ADMIN SYS_ADMIN SYS_PTRACE", "/run /var/log/pods", true},
		},
	},
	{
		name:     "probe",
		question: "Does redirection work in this pod?",
		about: `The probe runs inside the pod, as an ephemeral container that fits the Pod Security Standard restricted. It ends within
seconds, also after Ctrl-C; Kubernetes keeps its entry in the pod's specification until the pod is deleted. There it can't prove
inbound redirection: only connections from outside are redirected so. With --from-node the probe runs on the node and proves both.
`,
		examples: `  kubectl detour probe pod/web-0
  kubectl detour probe pod/web-0 --from-node`,
		inside: true,
		rights: []rights{
			{of: "pod"},
			{"pod", fromNode, "SYS_ADMIN SYS_PTRACE", "/var/log/pods", true},
		},
	},
}

// fromNode has a verb that runs inside the pod run on its node. It is kubectl detour's own flag.
const fromNode = "--from-node"

// runsInside reports whether the verb runs inside the pod.
func (v verb) runsInside(args []string) bool { return v.inside && !given(args, fromNode) }

// rightsFor returns what detourctl needs. ok is false if the verb is not about such a target.
func (v verb) rightsFor(of target, args []string) (r rights, ok bool) {
	for _, each := range v.rights {
		if each.of == of.kind() && (each.with == "" || given(args, each.with)) {
			r, ok = each, true
		}
	}
	return r, ok
}

// given reports whether the arguments have one of the flags, which are boolean.
func given(args []string, flags ...string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return slices.Contains(flags, strings.TrimSuffix(arg, "=true")) })
}

// without leaves out a boolean flag, which detourctl does not know.
func without(args []string, flag string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return given([]string{arg}, flag) })
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

// rightsTable says what detourctl's pod may do.
func rightsTable() string {
	var b strings.Builder
	b.WriteString("detourctl's pod is on the host's network and has no ServiceAccount token. What else it gets:\n\n")
	for _, row := range append([][]string{{"VERB", "OF", "CAPABILITIES", "PROCESSES", "FOLDERS (read-only)"}}, rightsRows()...) {
		fmt.Fprintf(&b, "  %-17s %-5s %-51s %-10s %s\n", row[0], row[1], row[2], row[3], row[4])
	}
	return strings.TrimRight(b.String(), "\n")
}

func rightsRows() [][]string {
	var rows [][]string
	for _, v := range verbs {
		for _, r := range v.rights {
			rows = append(rows, []string{strings.TrimSpace(v.name + " " + r.with), r.of, listed(r.capabilities), r.seen(v.inside && r.with == ""), listed(r.folders)})
		}
	}
	return rows
}

func (r rights) seen(inside bool) string {
	switch {
	case inside:
		return "the pod's"
	case r.processes:
		return "the host's"
	}
	return "its own"
}

func listed(words string) string {
	if words == "" {
		return "none"
	}
	return strings.ReplaceAll(words, " ", ", ")
}
