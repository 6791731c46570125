package cluster

// The addresses. Nothing outside the machines sees them.
const (
	controlIP4, controlIP6 = "172.30.0.1", "fd30::1"
	nodeIP4, nodeIP6       = "172.30.0.2", "fd30::2"
	podRange4, podRange6   = "10.244.0.0/24", "fd44::/64"
	serviceRanges          = "10.96.0.0/16,fd96::/112"
	firstServiceIP4        = "10.96.0.1" // the API server's
)

// nodeName is the node's name, and its machine's.
const nodeName = "node"

// component is a program of the cluster.
type component struct {
	name string
	args []string
}

// The folder of keys and kubeconfigs in each machine.
const pki = "/etc/kubernetes/"

// apiServer is named because it is stopped and started alone.
const apiServer = "kube-apiserver"

// controlPlane are the components of the control machine, in the order of their starts.
var controlPlane = []component{
	{"etcd", []string{
		"--data-dir=/var/lib/etcd",
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:0", // it has no peers
	}},
	{apiServer, []string{
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
		// Until Kubernetes 1.36, which serves v1 by default.
		"--feature-gates=MutatingAdmissionPolicy=true",
		"--runtime-config=admissionregistration.k8s.io/v1beta1=true",
	}},
	{"kube-controller-manager", []string{
		"--kubeconfig=" + pki + "controller-manager.conf",
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + pki + "serviceaccount.key",
		"--root-ca-file=" + pki + "ca.crt",
	}},
	{"kube-scheduler", []string{
		"--kubeconfig=" + pki + "scheduler.conf",
		"--leader-elect=false",
	}},
}

// nodePrograms are the components of the node's machine, in the order of their starts: containerd is the first.
var nodePrograms = []component{
	{"containerd", nil}, // its configuration is at the default path
	{"kubelet", []string{
		"--config=/var/lib/kubelet/config.yaml",
		"--kubeconfig=" + pki + "node.conf",
		"--hostname-override=" + nodeName,
		"--node-ip=" + nodeIP4 + "," + nodeIP6,
		"--root-dir=/var/lib/kubelet",
	}},
	{"kube-proxy", []string{
		"--config=" + pki + "kube-proxy.yaml",
		"--hostname-override=" + nodeName,
	}},
}

// Who has certificates on which machine.
var (
	controlSubjects = []subject{
		{file: "apiserver", name: "kube-apiserver", servesAt: []string{controlIP4, firstServiceIP4, "127.0.0.1", "kubernetes.default.svc"}},
		{file: "kubelet-client", name: "kube-apiserver-kubelet-client", group: "system:masters"},
		{file: "admin", name: "admin", group: "system:masters"},
		{file: "controller-manager", name: "system:kube-controller-manager"},
		{file: "scheduler", name: "system:kube-scheduler"},
	}
	nodeSubjects = []subject{
		{file: "node", name: "system:node:" + nodeName, group: "system:nodes"},
		{file: "proxy", name: "system:kube-proxy"},
	}
)
