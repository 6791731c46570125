package cniplugin_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/detour-cni/detour/pkg/nettest"
)

// interfaces is a running pod whose interfaces come and go, as Multus and its hot plugging have it. The names of interfaces say
// whether detour is in their network's chain: plain0 and plain1 are without.
type interfaces struct {
	*attachment
	node     *node
	networks map[string]*libcni.NetworkConfigList
	attached map[string]netip.Addr
	meshed   string // what the pod holds if it is programmed
}

func startInterfaces(t *testing.T, backend string) *interfaces {
	t.Helper()
	a := newAttachment(t, meshedPod(), meshConfig)
	n := startNode(t, a)
	n.conf["backend"] = backend
	i := &interfaces{a, n, map[string]*libcni.NetworkConfigList{}, map[string]netip.Addr{}, ""}
	for number, name := range []string{"eth0", "net1", "plain0", "plain1"} {
		subnet := []string{fmt.Sprintf("10.%d.0.0/24", 90+number)}
		bridge := fmt.Sprint("cni", number)
		if strings.HasPrefix(name, "plain") {
			i.networks[name] = n.chain("1.1.0", "of-"+name, bridge, subnet)
		} else {
			i.networks[name] = n.chain("1.1.0", "of-"+name, bridge, subnet, maps.Clone(n.conf))
		}
	}
	for _, l := range []struct {
		ns     *nettest.Namespace
		uid    uint32
		port   uint16
		banner nettest.Banner
	}{
		{a.ns, 0, 8080, nettest.Named("app")}, {n.ns, 0, 7000, nettest.Named("outside")},
		{a.ns, 1500, 15001, nettest.Proxy}, {a.ns, 1500, 15003, nettest.Proxy},
	} {
		listener, err := nettest.Process{Namespace: l.ns, UID: l.uid}.Listen(l.port, l.banner)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
	}
	return i
}

// step does what a step says: a verb and an interface.
func (i *interfaces) step(step string) {
	i.t.Helper()
	verb, name, _ := strings.Cut(step, " ")
	list, rt := i.networks[name], i.runtimeConf(name)
	switch verb {
	case "add":
		i.node.do("ADD", func() (err error) {
			i.attached[name], err = i.add(name)
			return err
		})
	case "del":
		i.node.del(list, rt)
		delete(i.attached, name)
	case "lose": // Multus deletes nothing, and later the runtime has each network collected
		delete(i.attached, name)
		for name, list := range i.networks {
			var valid []types.GCAttachment
			if _, ok := i.attached[name]; ok {
				valid = append(valid, types.GCAttachment{ContainerID: rt.ContainerID, IfName: name})
			}
			i.node.gc(list, valid...)
		}
	default:
		i.t.Fatalf("there is no step %s", step)
	}
}

// add adds an interface, on the node, and returns its address.
func (i *interfaces) add(name string) (netip.Addr, error) {
	result, err := i.node.cni.AddNetworkList(i.t.Context(), i.networks[name], i.runtimeConf(name))
	if err != nil {
		return netip.Addr{}, err
	}
	r, err := current.GetResult(result)
	if err != nil {
		return netip.Addr{}, err
	}
	addr, _ := netip.AddrFromSlice(r.IPs[0].Address.IP.To4())
	return addr, nil
}

// want wants after a step that records, rules, CHECK and traffic are what the attached interfaces say: rules are the pod's.
func (i *interfaces) want(step string) {
	i.t.Helper()
	var records []string
	for name := range i.attached {
		if !strings.HasPrefix(name, "plain") {
			records = append(records, "of-"+name+"/c1@"+name+".json")
		}
		i.node.check(i.networks[name], i.runtimeConf(name))
	}
	slices.Sort(records)
	if got := i.records(); !slices.Equal(got, records) {
		i.t.Errorf("after %s there are the records %q, want %q", step, got, records)
	}
	switch holds := i.holds(); {
	case len(records) == 0:
		i.same(step, i.nothing())
	case i.meshed == "":
		i.meshed = holds
	default:
		i.same(step, i.meshed)
	}
	for name, addr := range i.attached {
		in, out := netip.AddrPortFrom(addr, 8080), netip.AddrPortFrom(gateway(addr), 7000)
		wantIn, wantOut := "app 8080", "outside 7000"
		if len(records) > 0 {
			wantIn, wantOut = fmt.Sprintf("proxy 15003 original %s", in), fmt.Sprintf("proxy 15001 original %s", out)
		}
		i.dial(step+": to "+name, i.node.ns, in, wantIn)
		i.dial(step+": by "+name, i.ns, out, wantOut)
	}
}

func (i *interfaces) dial(what string, from *nettest.Namespace, to netip.AddrPort, want string) {
	i.t.Helper()
	if got, err := nettest.Dial(from, 1000, to, nettest.Patience); got != want {
		i.t.Errorf("%s: %s answered %q, %v, want %q", what, to, got, err, want)
	}
}

// gateway is the bridge's address, the first of the range.
func gateway(addr netip.Addr) netip.Addr {
	bytes := addr.As4()
	bytes[3] = 1
	return netip.AddrFrom4(bytes)
}

// Several networks of one pod, by libcni, in the orders in which Multus adds and deletes them, while the pod runs.
func TestInterfacesComeAndGo(t *testing.T) {
	for name, steps := range map[string][]string{
		"in the order of the ADDs": {"add eth0", "add net1", "del eth0", "del net1"},
		"in the other order":       {"add eth0", "add net1", "del net1", "del eth0"},
		"plugged and unplugged":    {"add eth0", "add net1", "del net1", "add plain1", "add net1", "del net1", "del net1", "del plain1", "del eth0"},
		"only the second":          {"add plain0", "add net1", "del net1", "add net1", "del plain0", "del net1"},
		"without detour at all":    {"add plain0", "add plain1", "del plain0", "del plain1"},
		"lost":                     {"add eth0", "add net1", "add plain1", "lose eth0", "lose net1", "lose plain1"},
	} {
		for _, backend := range []string{"iptables", "nftables"} {
			t.Run(name+"/"+backend, func(t *testing.T) {
				t.Parallel()
				i := startInterfaces(t, backend)
				for _, step := range steps {
					i.step(step)
					i.want(step)
				}
				i.empty()
			})
		}
	}
}

// containerd adds the interfaces of a pod at the same time if its max_conf_num says that there are several.
func TestInterfacesComeAtTheSameTime(t *testing.T) {
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			i := startInterfaces(t, backend)
			names := []string{"eth0", "net1", "plain1"}
			addrs, errs := make([]netip.Addr, len(names)), make([]error, len(names))
			var adding sync.WaitGroup
			for n, name := range names {
				adding.Go(func() { errs[n] = i.node.ns.Do(func() (err error) { addrs[n], err = i.add(name); return err }) })
			}
			adding.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			for n, name := range names {
				i.attached[name] = addrs[n]
			}
			i.want("all ADDs")
			for _, step := range []string{"del net1", "del eth0", "del plain1"} {
				i.step(step)
				i.want(step)
			}
			i.empty()
		})
	}
}
