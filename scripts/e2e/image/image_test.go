package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write makes an image of two files and a link, given in this order.
func write(t *testing.T, paths ...string) []byte {
	t.Helper()
	from := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := Image{Name: "example.org/a/b:1", Entrypoint: []string{"/b/run"}, Architecture: "arm64"}
	for _, path := range paths {
		path, link, _ := strings.Cut(path, "->")
		i.Files = append(i.Files, File{Path: path, From: from, Link: link})
	}
	var out bytes.Buffer
	if err := i.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// unpack reads a tar into its entries' contents by name.
func unpack(t *testing.T, data []byte) (names []string, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
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
	if !bytes.Equal(write(t, "/b/run", "/a", "/bin/sh->run"), write(t, "/bin/sh->run", "/a", "/b/run")) {
		t.Error("two archives of the same files differ")
	}
	if bytes.Equal(write(t, "/b/run", "/a"), write(t, "/b/run", "/c")) {
		t.Error("archives of different files are the same")
	}
}

func TestEveryDescriptorDescribesItsBlob(t *testing.T) {
	_, files := unpack(t, write(t, "/b/run", "/bin/sh->run"))
	blob := func(d descriptor) []byte {
		content := files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
		if digest(content) != d.Digest || len(content) != d.Size {
			t.Errorf("%s: %d bytes of %s, want %d of %s", d.MediaType, len(content), digest(content), d.Size, d.Digest)
		}
		return content
	}
	var i index
	var m manifest
	var c config
	decode(t, files["index.json"], &i)
	if len(i.Manifests) != 1 || i.Manifests[0].Annotations["io.containerd.image.name"] != "example.org/a/b:1" || i.Manifests[0].Platform.Architecture != "arm64" {
		t.Fatalf("index %+v", i)
	}
	decode(t, blob(i.Manifests[0]), &m)
	decode(t, blob(m.Config), &c)
	if len(m.Layers) != 1 || c.RootFS.DiffIDs[0] != m.Layers[0].Digest || c.Config.Entrypoint[0] != "/b/run" {
		t.Fatalf("manifest %+v, config %+v", m, c)
	}
	names, contents := unpack(t, blob(m.Layers[0]))
	if got, want := strings.Join(names, " "), "b/ b/run bin/ bin/sh->run"; got != want {
		t.Errorf("the layer has %s, want %s", got, want)
	}
	if string(contents["b/run"]) != "content" {
		t.Errorf("b/run is %q", contents["b/run"])
	}
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v: %s", err, data)
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
