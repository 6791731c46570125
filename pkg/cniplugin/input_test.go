package cniplugin_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// maxAnnotations is how many bytes the API server lets all annotations of an object have.
const maxAnnotations = 256 << 10

// hostile are values by which someone might pass options, rules or commands to a program, or numbers that only look like ports.
var hostile = map[string]string{
	"an option":                     "-j",
	"a long option":                 "--table=filter",
	"an option after a port":        "80 -j ACCEPT",
	"a rule on the next line":       "80\n-A OUTPUT -j ACCEPT",
	"the end of the transaction":    "80\nCOMMIT\n*filter",
	"a shell's command":             "$(touch /run/detour-was-here)",
	"another shell's command":       "80;touch /run/detour-was-here",
	"a quote":                       `80" accept`,
	"the end of a set":              "80 } accept",
	"a format":                      "%s%n%d",
	"a path":                        "../../../etc/passwd",
	"digits of another script":      "٨٠",
	"digits of double width":        "８０",
	"a sign":                        "+80",
	"a NUL":                         "80\x00",
	"half a character":              "80\xff",
	"as many bytes as there may be": strings.Repeat("A", maxAnnotations-100),
}

func TestNothingInAnAnnotationReachesAProgramOrTheKernel(t *testing.T) {
	const osm, istio, traffic = "openservicemesh.io/", "istio.io/", "traffic.sidecar.istio.io/"
	for mesh, annotations := range map[string][]string{
		"osm": {
			osm + "inbound-port-exclusion-list", osm + "outbound-port-exclusion-list", osm + "outbound-ip-range-exclusion-list",
			osm + "outbound-ip-range-inclusion-list", osm + "sidecar-injection",
		},
		"istio": {
			traffic + "includeInboundPorts", traffic + "excludeInboundPorts", traffic + "includeOutboundPorts", traffic + "excludeOutboundPorts",
			traffic + "includeOutboundIPRanges", traffic + "excludeOutboundIPRanges", traffic + "excludeInterfaces", traffic + "kubevirtInterfaces",
			istio + "reroute-virtual-interfaces", istio + "rev",
		},
	} {
		for _, annotation := range append(annotations, "detour.io/redirect-after-proxy-start", "detour.io/direct-init-containers") {
			t.Run(mesh+" "+annotation, func(t *testing.T) {
				t.Parallel()
				a := newAttachment(t, "")
				a.conf["mesh"] = mesh
				a.env["PATH"] = countingPath(t, a.path("started"))
				for name, value := range hostile {
					a.file("manifests.yaml", annotated(mesh, fmt.Sprintf("%s: %q", annotation, value)))
					_, err := a.run("ADD")
					if err == nil || err.Code != 100 || !strings.Contains(err.Error(), annotation) || len(err.Error()) > 600 {
						t.Errorf("%s: got error %.700v", name, err)
					}
				}
				a.untouched()
				if _, err := os.Stat(a.path("started")); err == nil {
					t.Error("a program was started")
				}
			})
		}
	}
}

// annotated is the pod shop/web of a mesh with one annotation.
func annotated(mesh, annotation string) string {
	if mesh == "istio" {
		return istioPod(annotation)
	}
	return fmt.Sprintf(meshed, ", annotations: {"+annotation+"}")
}

// The longest lists that the API server takes, none of whose entries are neighbours.
func TestTheLongestAnnotationsAreProgrammed(t *testing.T) {
	oddPorts := list(1, 65536, strconv.Itoa)
	ranges := list(1, 2*maxAnnotations/len("11.111.111.1/32,"), func(n int) string { return fmt.Sprintf("11.%d.%d.%d/32", n>>16, n>>8&255, n&255) })
	for name, c := range map[string]struct{ annotation, want string }{
		"every second port":       {"outbound-port-exclusion-list: " + strconv.Quote(oddPorts), "out 1.1.1.1:65535 -> outside\nout 1.1.1.1:65534 -> proxy 15001"},
		"thousands of ranges":     {"outbound-ip-range-exclusion-list: " + strconv.Quote(ranges), "out 11.0.1.1:80 -> outside\nout 11.0.1.2:80 -> proxy 15001"},
		"an entry 65,535 times":   {"outbound-port-exclusion-list: " + strconv.Quote(strings.Repeat("80,", 65534)+"80"), "out 1.1.1.1:80 -> outside\nout 1.1.1.1:81 -> proxy 15001"},
		"blanks around two ports": {"outbound-port-exclusion-list: " + strconv.Quote("80"+strings.Repeat(" ", maxAnnotations-200)+",81"), "out 1.1.1.1:81 -> outside\nout 1.1.1.1:82 -> proxy 15001"},
	} {
		if len(c.annotation) > maxAnnotations {
			t.Fatalf("%s: the API server refuses %d bytes", name, len(c.annotation))
		}
		packets, err := nettest.ParsePackets(c.want)
		if err != nil {
			t.Fatal(err)
		}
		for _, backend := range []string{"nftables", "iptables", "legacy"} {
			t.Run(name+" "+backend, func(t *testing.T) {
				t.Parallel()
				a := newAttachment(t, meshedPod(c.annotation), meshConfig)
				a.conf["backend"] = strings.Replace(backend, "legacy", "iptables", 1)
				if backend == "legacy" {
					a.env["PATH"] = legacyPath(t)
				}
				w := nettest.StartWorld(t)
				a.ns, a.env["CNI_NETNS"] = w.Pod, w.Pod.Path()
				a.must("ADD")
				a.must("CHECK")
				nettest.CheckPackets(t, w, packets, 15001)
				a.must("DEL")
				a.empty()
			})
		}
	}
}

// list joins every second number's entry from first to end.
func list(first, end int, entry func(int) string) string {
	var entries []string
	for n := first; n < end; n += 2 {
		entries = append(entries, entry(n))
	}
	return strings.Join(entries, ",")
}

// What a runtime passes never comes from a pod's owner alone; a runtime with a fault must not make detour write elsewhere.
func TestNamesThatLeadElsewhereAreRefused(t *testing.T) {
	long := strings.Repeat("x", 300)
	pod := "K8S_POD_NAMESPACE=shop;K8S_POD_NAME="
	for variable, values := range map[string][]string{
		"CNI_CONTAINERID": {"../../c1", "c1/../../x", "-c1", "c1 c2", "c1\nc2", ""},
		"CNI_IFNAME":      {"../eth0", "eth0/x", ".", "..", "eth0 -j ACCEPT", "eth0\n", "", "a-name-of-16-byte"},
		"CNI_ARGS":        {pod + "../../secrets/x", pod + "web?watch=1", pod + "web%2f..%2f", pod + "web#", pod + "-web", pod + long, pod + "wéb", pod + "web\n"},
	} {
		for _, value := range values {
			t.Run(fmt.Sprintf("%s %.40q", variable, value), func(t *testing.T) {
				t.Parallel()
				a := newAttachment(t, meshedPod(), meshConfig)
				a.env[variable] = value
				_, err := a.run("ADD")
				if err == nil || err.Code != 4 || len(err.Error()) > 600 {
					t.Errorf("got error %v", err)
				}
				a.untouched()
			})
		}
	}
	for _, name := range []string{"../net", "net/../../x", "-net", "net x", "net\n", ""} {
		t.Run(fmt.Sprintf("network %q", name), func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["name"] = name
			a.fails("ADD", 7)
			a.untouched()
		})
	}
}

func TestAContainerIDThatIsTooLongForAFileFailsAndIsDeleted(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.env["CNI_CONTAINERID"] = strings.Repeat("x", 300)
	a.fails("ADD", 999, "pod shop/web", "file name too long")
	a.untouched()
	a.must("DEL")
}
