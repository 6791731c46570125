// Package image writes container images without a registry or a builder: an OCI archive of one index with one image of one layer
// for each architecture. `ctr images import`, `podman load`, `skopeo` and, unpacked, `crane push` read it. The same content gives
// the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is what an image of one architecture consists of. Its files are root's and everybody may read and execute them.
type Image struct {
	Name         string // with registry and tag, as containerd stores it
	Labels       map[string]string
	Created      time.Time
	Files        []File
	Entrypoint   []string
	Architecture string // amd64, arm64; this host's if empty
}

// Write writes the image as an OCI archive.
func (i Image) Write(w io.Writer) error {
	_, err := Write(w, i)
	return err
}

// Write writes images of one name as an OCI archive and returns the digest of their index, which has the first one's labels as
// annotations.
func Write(w io.Writer, images ...Image) (digest v1.Hash, err error) {
	first := images[0]
	index, err := indexOf(images)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("make image %s: %w", first.Name, err)
	}
	folder, err := os.MkdirTemp("", "image-*")
	if err != nil {
		return v1.Hash{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	_, tag, _ := strings.Cut(path.Base(first.Name), ":")
	whole, err := layout.Write(folder, empty.Index)
	if err == nil {
		err = whole.AppendIndex(index, layout.WithAnnotations(map[string]string{
			"io.containerd.image.name": first.Name, "org.opencontainers.image.ref.name": tag,
		}))
	}
	if err == nil {
		err = tarOf(folder, w)
	}
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write image %s: %w", first.Name, err)
	}
	return index.Digest()
}

func indexOf(images []Image) (v1.ImageIndex, error) {
	index := mutate.Annotations(empty.Index, images[0].Labels).(v1.ImageIndex)
	for _, i := range images {
		made, err := i.make()
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: made, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: i.architecture()},
		}})
	}
	return index, nil
}

func (i Image) architecture() string {
	if i.Architecture == "" {
		return runtime.GOARCH
	}
	return i.Architecture
}

func (i Image) make() (v1.Image, error) {
	content, err := layerOf(i.Files)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	made, err := mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		&v1.ConfigFile{
			OS: "linux", Architecture: i.architecture(), Created: v1.Time{Time: i.Created.UTC()},
			RootFS: v1.RootFS{Type: "layers"},
			Config: v1.Config{
				Entrypoint: i.Entrypoint, Labels: i.Labels,
				Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			},
		})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(made, layer)
}

// tarOf writes the files of a folder in the order of their names.
func tarOf(folder string, w io.Writer) error {
	a := archive{tar.NewWriter(w)}
	err := filepath.WalkDir(folder, func(name string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return a.file(strings.TrimPrefix(name, folder+"/"), content, 0o644)
	})
	if err != nil {
		return err
	}
	return a.Close()
}

// File is a file of an image, made of a file of the host's or, if Link is not empty, a symbolic link.
type File struct {
	Path string // absolute, in the image
	From string
	Link string
}

// layerOf is a tar of the files in the order of their paths, with the folders they need.
func layerOf(files []File) ([]byte, error) {
	files = slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	var buffer bytes.Buffer
	a := archive{tar.NewWriter(&buffer)}
	made := map[string]bool{".": true}
	for _, f := range files {
		name := strings.TrimPrefix(path.Clean(f.Path), "/")
		if err := a.folders(path.Dir(name), made); err != nil {
			return nil, err
		}
		if f.Link != "" {
			if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.Link, Mode: 0o777}); err != nil {
				return nil, err
			}
			continue
		}
		content, err := os.ReadFile(f.From)
		if err == nil {
			err = a.file(name, content, 0o755)
		}
		if err != nil {
			return nil, err
		}
	}
	return buffer.Bytes(), a.Close()
}

// archive is a tar without times and owners.
type archive struct{ *tar.Writer }

func (a archive) folders(name string, made map[string]bool) error {
	if made[name] {
		return nil
	}
	made[name] = true
	if err := a.folders(path.Dir(name), made); err != nil {
		return err
	}
	return a.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
}

func (a archive) file(name string, content []byte, mode int64) error {
	if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: mode}); err != nil {
		return err
	}
	_, err := a.Write(content)
	return err
}
