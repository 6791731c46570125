package main

import (
	"strings"
	"testing"
)

func TestNamesBecomeAddresses(t *testing.T) {
	c := cluster{
		"/api/v1/namespaces/shop/pods/web":       pod("web", "ready"),
		"/api/v1/namespaces/shop/pods/six":       pod("six", "running"),
		"/api/v1/namespaces/shop/pods/new":       pod("new", "waiting"),
		"/api/v1/namespaces/shop/services/one":   service("one", "clusterIP: 10.96.0.1, ports: [{port: 80, name: http, protocol: TCP}]"),
		"/api/v1/namespaces/shop/services/two":   service("two", "clusterIP: 'fd96::1', ports: [{port: 80, name: http, protocol: TCP}, {port: 443, name: https, protocol: TCP}]"),
		"/api/v1/namespaces/shop/services/bare":  service("bare", "clusterIP: None, ports: [{port: 80, protocol: TCP}]"),
		"/api/v1/namespaces/shop/services/alias": service("alias", "type: ExternalName, externalName: example.com"),
		"/api/v1/namespaces/dns/services/dns":    service("dns", "clusterIP: 10.96.0.10, ports: [{port: 53, name: dns, protocol: UDP}, {port: 53, name: dns-tcp, protocol: TCP}]"),
	}.client(t)
	for line, want := range map[string]string{
		"--out --to 10.0.0.9:80":                 "--out --to 10.0.0.9:80",
		"--to svc/one":                           "--to 10.96.0.1:80",
		"--to=svc/one:80 --from=pod/web":         "--to=10.96.0.1:80 --from=10.0.0.1",
		"--to service/two:https --from pod/six":  "--to [fd96::1]:443 --from fd00::1",
		"--to pod/six:8080":                      "--to [fd00::1]:8080",
		"--proto udp --to svc/dns/dns:53":        "--proto udp --to 10.96.0.10:53",
		"--to svc/dns/dns --proto=tcp":           "--to 10.96.0.10:53 --proto=tcp",
		"--iptables-save svc/one --to":           "--iptables-save svc/one --to",
		"--to svc/one --from svc/shop/two:http ": "--to 10.96.0.1:80 --from [fd96::1]:80",
	} {
		got, err := c.addresses(t.Context(), strings.Fields(line), "shop")
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, %v, want %s", line, got, err, want)
		}
	}
	for value, want := range map[string]string{
		"svc/gone:80":      "--to svc/gone:80: there is no svc shop/gone",
		"svc/two":          "service shop/two has 80/TCP, 443/TCP: choose one by svc/NAME:PORT and --proto",
		"svc/two:81":       "service shop/two has 80/TCP, 443/TCP: choose",
		"svc/dns/dns:dns":  "service shop/dns has 53/UDP, 53/TCP: choose",
		"svc/bare:80":      "service shop/bare has no ClusterIP",
		"svc/alias:80":     "service shop/alias stands for the name example.com",
		"pod/new:80":       "pod shop/new has no address",
		"deploy/web:80":    "an address is IP:PORT, svc/NAME:PORT or pod/NAME:PORT",
		"svc//x:80":        `"svc//x" is neither`,
		"http://one/":      `an address is`,
		"pod/a/b/c/d:80":   `"pod/a/b/c/d" is neither`,
		"10.0.0.0/8":       "an address is",
		"svc/one:80:80:80": "service shop/one has 80/TCP: choose",
	} {
		_, err := c.addresses(t.Context(), []string{"--to", value}, "shop")
		wantError(t, value, err, want)
	}
}

// service is one of namespace shop with a spec.
func service(name, spec string) string {
	return "{metadata: {namespace: shop, name: " + name + "}, spec: {" + spec + "}}"
}
