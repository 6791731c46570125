package cluster

import (
	"context"
	"os"
)

// The addresses. Nothing outside the machines sees them. Pods of the first node are known from the start; controller manager
// and flannel give the nodes that join theirs.
const (
	controlIP4, controlIP6 = "172.30.0.1", "fd30::1"
	nodeIP4, nodeIP6       = "172.30.0.%d", "fd30::%d" // the first node is 2
	podNetwork             = "10.224.0.0/16"
	podRange4, podRange6   = "10.224.0.0/24", "fd44::/64"
	serviceRange4          = "10.96.0.0/16" // the API server calls webhooks by it, through the first node's kube-proxy
	serviceRanges          = serviceRange4 + ",fd96::/112"
	firstServiceIP4        = "10.96.0.1" // the API server's
)

// The names of the machines that are there from the start. The first node is one.
const controlName, nodeName = "control", "node"

// component is a program of the cluster.
type component struct {
	name  string
	args  []string
	env   []string
	ready func(context.Context, *host) error // is nil if one can't tell; an error is no
}

// The folder of keys and kubeconfigs in each machine.
const pki = "/etc/kubernetes/"

// controlPlane are the components of the control machine, in the order of their starts.
var controlPlane = []component{etcd, apiServer, controllerManager, scheduler}

var (
	etcd = component{name: "etcd", args: []string{
		"--data-dir=/var/lib/etcd",
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:0", // it has no peers
	}}
	apiServer = component{name: "kube-apiserver", ready: raw("/readyz"), args: []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--secure-port=6443",
		"--advertise-address=" + controlIP4,
		"--service-cluster-ip-range=" + serviceRanges,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--client-ca-file=" + pki + "ca.crt",
		"--tls-cert-file=" + pki + "apiserver.crt",
		"--tls-private-key-file=" + pki + "apiserver.key",
		"--kubelet-client-certificate=" + pki + "kubelet-client.crt",
		"--kubelet-client-key=" + pki + "kubelet-client.key",
		"--kubelet-preferred-address-types=InternalIP", // the node's name does not resolve
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki + "serviceaccount.key",
		"--service-account-signing-key-file=" + pki + "serviceaccount.key",
	}}
	controllerManager = component{name: "kube-controller-manager", args: []string{
		"--kubeconfig=" + pki + "controller-manager.conf",
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + pki + "serviceaccount.key",
		"--root-ca-file=" + pki + "ca.crt",
		"--allocate-node-cidrs=true", // for flannel
		"--cluster-cidr=" + podNetwork,
	}}
	scheduler = component{name: "kube-scheduler", args: []string{
		"--kubeconfig=" + pki + "scheduler.conf",
		"--leader-elect=false",
	}}
)

// The components of a node's machine. containerd is the first to start, and flannel the last: it needs the node's pod range.
// Its configuration is at the default path; its shim comes from where it comes from itself.
var containerd = component{name: "containerd", ready: askContainerd, env: []string{"PATH=" + os.Getenv("PATH")}}

func (n *Node) kubelet() component {
	return component{name: "kubelet", ready: raw("/api/v1/nodes/" + n.name + "/proxy/healthz"), args: []string{
		"--config=/var/lib/kubelet/config.yaml",
		"--kubeconfig=" + pki + "node.conf",
		"--hostname-override=" + n.name,
		"--node-ip=" + n.ip4 + "," + n.ip6,
		"--root-dir=/var/lib/kubelet",
	}}
}

func (n *Node) kubeProxy() component {
	return component{name: "kube-proxy", ready: raw("/api/v1/nodes/" + n.name + ":10256/proxy/healthz"), args: []string{
		"--config=" + pki + "kube-proxy.yaml",
		"--hostname-override=" + n.name,
	}}
}

// flanneld leaves the chain FORWARD alone: what is in it is the tests' affair.
func (n *Node) flanneld() component {
	return component{name: "flanneld", ready: readSubnet, env: []string{"NODE_NAME=" + n.name}, args: []string{
		"--kube-subnet-mgr",
		"--kubeconfig-file=" + pki + "flannel.conf",
		"--net-config-path=" + pki + "net-conf.json",
		"--iface=eth0",
		"--ip-masq",
		"--iptables-forward-rules=false",
	}}
}

// controlSubjects are who has certificates on the control machine.
var controlSubjects = []subject{
	{file: "apiserver", name: "kube-apiserver", servesAt: []string{controlIP4, firstServiceIP4, "127.0.0.1", "kubernetes.default.svc"}},
	{file: "kubelet-client", name: "kube-apiserver-kubelet-client", group: "system:masters"},
	{file: "admin", name: "admin", group: "system:masters"},
	{file: "controller-manager", name: "system:kube-controller-manager"},
	{file: "scheduler", name: "system:kube-scheduler"},
}

// subjects are who has certificates on the node.
func (n *Node) subjects() []subject {
	return []subject{
		{file: "node", name: "system:node:" + n.name, group: "system:nodes"},
		{file: "proxy", name: "system:kube-proxy"},
		{file: "flannel", name: "flannel", group: "system:masters"},
	}
}
