//go:build release

package release

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// The registry is go-containerregistry's, and crane and helm are the real ones.
func TestWhatIsPushedIsWhatTheManifestsName(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	address := server.Listener.Addr().String()
	_, digest := index(t)
	said := output(filepath.Join(clone, "scripts/publish.sh"), address)
	want := "image=" + address + "/detour@" + digest.String() +
		"\nchart=" + address + "/charts/detour@" + manifestOf(t, server.URL, "charts/detour", version[1:])
	if !strings.HasSuffix(said, want) {
		t.Errorf("publish.sh says %s, want %s", said, want)
	}
	if got := manifestOf(t, server.URL, "detour", version); got != digest.String() {
		t.Errorf("the registry has %s, want %s", got, digest)
	}
}

// manifestOf returns the digest of a manifest in a registry.
func manifestOf(t *testing.T, server, name, tag string) string {
	t.Helper()
	r := must(http.NewRequestWithContext(t.Context(), http.MethodHead, server+"/v2/"+name+"/manifests/"+tag, http.NoBody))(t)
	answer := must(http.DefaultClient.Do(r))(t)
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%s:%s: %s", name, tag, answer.Status)
	}
	return answer.Header.Get("Docker-Content-Digest")
}
