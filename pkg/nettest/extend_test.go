package nettest

import "testing"

func TestExcludedInterface(t *testing.T) {
	t.Parallel()
	const redirect = `-A PREROUTING -p tcp -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp -j REDIRECT --to-ports 15001
COMMIT
`
	const exclude = `-A PREROUTING -i net1 -j RETURN
-A OUTPUT -o net1 -j RETURN
`
	forBoth(t, func(t *testing.T, variant string) {
		w := StartWorld(t)
		restoreBoth(t, w.Pod, variant, "*nat\n"+redirect)
		CheckPackets(t, w, parse(t, `
			in via=net1 8080 -> proxy 15006
			in4 via=net1 8081 -> proxy 15006
			out 192.0.2.9:80 -> proxy 15001
			out [2001:db8:78::9]:80 -> proxy 15001
		`))
		restoreBoth(t, w.Pod, variant, "*nat\n"+exclude+redirect)
		CheckPackets(t, w, parse(t, `
			in via=net1 8080 -> app
			in6 via=net1 8081 -> app
			in udp via=net1 8080 -> app
			in 8080 -> proxy 15006
			out 192.0.2.9:80 -> outside
			out [2001:db8:78::9]:80 -> outside
			out udp 192.0.2.9:53 -> outside
			out 10.78.0.1:80 -> outside
			out 1.1.1.1:80 -> proxy 15001
			out [2001:db8::1]:80 -> proxy 15001
			out 10.78.0.2:9000 uid=0 -> proxy 15001    # the pod's own address: over lo
		`))
	})
}

func TestVirtualInterface(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		w := StartWorld(t)
		CheckPackets(t, w, parse(t, `
			guest 1.1.1.1:80 -> outside
			guest [2001:db8::1]:80 -> outside
			guest 192.0.2.9:80 -> outside
			guest 10.77.0.2:8080 -> app
			guest [fd79::1]:8080 -> app
		`))
		restoreBoth(t, w.Pod, variant, `*nat
-A PREROUTING -i k6t-vm -p tcp -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp -j REDIRECT --to-ports 15006
COMMIT
`)
		CheckPackets(t, w, parse(t, `
			guest 1.1.1.1:80 -> proxy 15001
			guest [2001:db8::1]:80 -> proxy 15001
			guest 10.77.0.2:8080 -> proxy 15001
			guest udp 1.1.1.1:53 -> outside
			guest udp [2001:db8::1]:53 -> outside
			in 8080 -> proxy 15006
			in via=net1 8080 -> proxy 15006
			out 1.1.1.1:80 -> outside
		`))
	})
}

// A world has only what its packets need, and says so where a packet comes unserved.
func TestSendUnserved(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	if err := w.Serve(parse(t, "out 1.1.1.1:80 -> outside\nin 8080 -> app")); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"in via=net1 8080 -> app", "out 192.0.2.9:80 -> outside", "guest 1.1.1.1:80 -> outside", "out [fd79::1]:8080 -> app"} {
		if got, err := w.Send(parse(t, line)[0]); err == nil {
			t.Errorf("%s: got %q and no error", line, got)
		}
	}
	if w.Guest != nil {
		t.Error("there is a guest")
	}
	awaitNoLink(t, w.Pod, podNet1)
}
