// Package image writes container images without a registry or a builder: an OCI archive of one layer, which
// `ctr images import`, `podman load` and `skopeo` read. The same content gives the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
)

// File is a file of an image, made of a file of the host's or, if Link is not empty, a symbolic link.
type File struct {
	Path string // absolute, in the image
	From string
	Link string
}

// Image is what an image consists of. Its files are root's and everybody may read and execute them.
type Image struct {
	Name         string // with registry and tag, as containerd stores it
	Files        []File
	Entrypoint   []string
	Architecture string // amd64, arm64; this host's if empty
}

// The parts of an OCI image that are needed here: https://github.com/opencontainers/image-spec.
type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Platform    *platform         `json:"platform,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	index struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	config struct {
		platform
		Config struct {
			Entrypoint []string
			Env        []string
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
)

const media = "application/vnd.oci.image."

// Write writes the image as an OCI archive, which it builds in memory.
func (i Image) Write(w io.Writer) error {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("make image %s: %w", i.Name, err)
	}
	p := platform{i.Architecture, "linux"}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	c := config{platform: p}
	c.Config.Entrypoint = i.Entrypoint
	c.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	c.RootFS.Type = "layers"
	c.RootFS.DiffIDs = []string{digest(layer)} // of the layer before compression, and there is none

	a := archive{tar.NewWriter(w)}
	configured, err1 := a.blob(media+"config.v1+json", toJSON(c))
	layered, err2 := a.blob(media+"layer.v1.tar", layer)
	manifested, err3 := a.blob(media+"manifest.v1+json", toJSON(manifest{2, media + "manifest.v1+json", configured, []descriptor{layered}}))
	manifested.Platform = &p
	_, tag, _ := strings.Cut(path.Base(i.Name), ":")
	manifested.Annotations = map[string]string{"io.containerd.image.name": i.Name, "org.opencontainers.image.ref.name": tag}
	err = errors.Join(err1, err2, err3,
		a.file("index.json", toJSON(index{2, media + "index.v1+json", []descriptor{manifested}}), 0o644),
		a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
		a.Close(),
	)
	if err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	return nil
}

// layer is a tar of the files in the order of their paths, with the folders they need.
func (i Image) layer() ([]byte, error) {
	files := slices.SortedFunc(slices.Values(i.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
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

func (a archive) blob(mediaType string, content []byte) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Digest: digest(content), Size: len(content)}
	return d, a.file("blobs/"+strings.Replace(d.Digest, ":", "/", 1), content, 0o644)
}

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

func toJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // the types above can be written
	}
	return data
}
