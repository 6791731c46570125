package conns

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// startAdmin serves, at Envoy's admin port in the namespace, what was recorded in envoy/testdata.
func startAdmin(t *testing.T, ns *nettest.Namespace, recorded string) {
	t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:15000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("envoy/testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	answers := map[string][]byte{
		"/server_info": read("server_info.json"),
		"/config_dump": read(recorded + ".json"),
		"/clusters":    read("clusters.json"),
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(answers[r.URL.Path]) })}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}
