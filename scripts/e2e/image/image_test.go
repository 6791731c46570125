package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// write makes an index of two images of two files and a link, given in this order.
func write(t *testing.T, paths ...string) ([]byte, v1.Hash) {
	t.Helper()
	from := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := Image{
		Name: "example.org/a/b:1", Entrypoint: []string{"/b/run"}, Architecture: "arm64",
		Labels: map[string]string{"org.opencontainers.image.version": "1", "a": "b", "c": "d"}, Created: time.Unix(1e9, 0),
	}
	for _, path := range paths {
		path, link, _ := strings.Cut(path, "->")
		i.Files = append(i.Files, File{Path: path, From: from, Link: link})
	}
	second := i
	second.Architecture = "amd64"
	var out bytes.Buffer
	digest, err := Write(&out, i, second)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), digest
}

// unpack reads a tar into its entries' contents by name.
func unpack(t *testing.T, from io.Reader) (names []string, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		if h.Linkname != "" {
			name += "->" + h.Linkname
		}
		if contents[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	one, _ := write(t, "/b/run", "/a", "/bin/sh->run")
	other, _ := write(t, "/bin/sh->run", "/a", "/b/run")
	if !bytes.Equal(one, other) {
		t.Error("two archives of the same files differ")
	}
	third, _ := write(t, "/bin/sh->run", "/a", "/c/run")
	if bytes.Equal(one, third) {
		t.Error("archives of different files are the same")
	}
}

func TestTheArchiveIsAnOCILayoutOfAnIndex(t *testing.T) {
	data, digest := write(t, "/b/run", "/bin/sh->run")
	_, files := unpack(t, bytes.NewReader(data))
	folder := t.TempDir()
	for name, content := range files {
		name = filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	whole := must(layout.ImageIndexFromPath(folder))(t)
	if err := validate.Index(whole); err != nil {
		t.Error(err)
	}
	top := must(whole.IndexManifest())(t).Manifests
	if len(top) != 1 || top[0].Digest != digest || top[0].Annotations["io.containerd.image.name"] != "example.org/a/b:1" {
		t.Fatalf("index.json has %+v, want %s", top, digest)
	}
	index := must(whole.ImageIndex(digest))(t)
	manifest := must(index.IndexManifest())(t)
	if len(manifest.Manifests) != 2 || manifest.Annotations["org.opencontainers.image.version"] != "1" {
		t.Fatalf("the index is %+v", manifest)
	}
	for n, architecture := range []string{"arm64", "amd64"} {
		wantImage(t, must(index.Image(manifest.Manifests[n].Digest))(t), *manifest.Manifests[n].Platform, architecture)
	}
}

func wantImage(t *testing.T, i v1.Image, platform v1.Platform, architecture string) {
	t.Helper()
	c := must(i.ConfigFile())(t)
	if c.Architecture != architecture || platform.String() != "linux/"+architecture || c.Created.Unix() != 1e9 ||
		c.Config.Entrypoint[0] != "/b/run" || c.Config.Labels["org.opencontainers.image.version"] != "1" {
		t.Errorf("the image for %s is %+v", platform, c)
	}
	layers := must(i.Layers())(t)
	if len(layers) != 1 {
		t.Fatalf("%d layers", len(layers))
	}
	names, contents := unpack(t, must(layers[0].Uncompressed())(t))
	if got, want := strings.Join(names, " "), "b/ b/run bin/ bin/sh->run"; got != want {
		t.Errorf("the layer has %s, want %s", got, want)
	}
	if string(contents["b/run"]) != "content" {
		t.Errorf("b/run is %q", contents["b/run"])
	}
}

// must returns a function that fails the test if there is an error.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func TestAProgramComesWithItsLibraries(t *testing.T) {
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	files, err := Program(sh)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, f.Path)
	}
	if all := strings.Join(paths, " "); paths[0] != sh || len(paths) > 1 && !strings.Contains(all, "libc") {
		t.Errorf("%s comes with %s", sh, all)
	}
	if _, err := Program(os.Args[0] + "-none"); err == nil {
		t.Error("a program that is not there has files")
	}
}
