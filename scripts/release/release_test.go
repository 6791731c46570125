//go:build release

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/mesh"
)

const image = "ghcr.io/detour-cni/detour"

var (
	clone  = os.Getenv("DETOUR_RELEASE")
	commit = output("git", "-C", clone, "rev-parse", "HEAD")
	// version is the one that deploy/ names.
	version = regexp.MustCompile(`(?m)^ +newTag: (\S+)`).FindStringSubmatch(read("deploy/base/kustomization.yaml"))[1]
)

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("%s %q: %v: %s", name, args, err, out))
	}
	return strings.TrimSpace(string(out))
}

// read reads a file of the clone.
func read(name string) string {
	data, err := os.ReadFile(filepath.Join(clone, name))
	if err != nil {
		panic(err)
	}
	return string(data)
}

// dist returns the released files that fit a pattern, of which there must be some.
func dist(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(clone, "dist", pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no file is %s: %v", pattern, err)
	}
	return found
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

type entry struct {
	tar.Header
	content []byte
}

// unpack reads a tar.
func unpack(t *testing.T, from io.Reader) map[string]entry {
	t.Helper()
	entries := map[string]entry{}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		entries[strings.TrimPrefix(h.Name, "./")] = entry{*h, must(io.ReadAll(r))(t)}
	}
}

func unpackFile(t *testing.T, name string) map[string]entry {
	t.Helper()
	data := must(os.ReadFile(name))(t)
	if strings.HasSuffix(name, "gz") {
		data = must(io.ReadAll(must(gzip.NewReader(bytes.NewReader(data)))(t)))(t)
	}
	return unpack(t, bytes.NewReader(data))
}

// wantProgram checks that the file is one of detour's programs for the platform.
func wantProgram(t *testing.T, e entry, platform string) {
	t.Helper()
	info, err := buildinfo.Read(bytes.NewReader(e.content))
	if err != nil {
		t.Fatalf("%s: %v", e.Name, err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if got := settings["GOOS"] + "_" + settings["GOARCH"]; got != platform || e.Mode&0o777 != 0o755 || settings["CGO_ENABLED"] != "0" {
		t.Errorf("%s is for %s, of mode %o, with CGO_ENABLED=%s", e.Name, got, e.Mode, settings["CGO_ENABLED"])
	}
	if bytes.Contains(e.content, []byte(clone)) {
		t.Errorf("%s names the folder that it was built in", e.Name)
	}
	if !strings.HasPrefix(platform, "linux") {
		return
	}
	file := must(elf.NewFile(bytes.NewReader(e.content)))(t)
	machine := map[string]elf.Machine{"linux_amd64": elf.EM_X86_64, "linux_arm64": elf.EM_AARCH64}[platform]
	if file.Machine != machine || file.Section(".interp") != nil {
		t.Errorf("%s is a program for %s, or it is not static", e.Name, file.Machine)
	}
}

// imagePrograms are those of plugin/ that run in a cluster.
func imagePrograms(t *testing.T) []string {
	t.Helper()
	folders := must(filepath.Glob(filepath.Join(clone, "plugin", "detour*")))(t)
	for n, folder := range folders {
		folders[n] = filepath.Base(folder)
	}
	return folders
}

func TestEveryArchiveHasThePlatformsPrograms(t *testing.T) {
	archives := append(dist(t, "detour_*.tar.gz"), dist(t, "kubectl-detour_*.tar.gz")...)
	if len(archives) != 2+6 {
		t.Errorf("the archives are %q", archives)
	}
	for _, archive := range archives {
		program, platform, _ := strings.Cut(strings.TrimSuffix(filepath.Base(archive), ".tar.gz"), "_"+version+"_")
		programs := imagePrograms(t)
		if program != "detour" {
			programs = []string{program}
		}
		entries := unpackFile(t, archive)
		for _, e := range entries {
			if e.Uid != 0 || e.Gid != 0 || e.Uname != "" {
				t.Errorf("%s: %s belongs to %d:%d %s", archive, e.Name, e.Uid, e.Gid, e.Uname)
			}
		}
		if len(entries["LICENSE"].content) == 0 || len(entries["README.md"].content) == 0 || len(entries) != len(programs)+3 {
			t.Errorf("%s has %d entries", archive, len(entries))
		}
		for _, name := range programs {
			if strings.HasPrefix(platform, "windows") {
				name += ".exe"
			}
			wantProgram(t, entries[name], platform)
		}
	}
}

func TestTheProgramsSayVersionAndCommit(t *testing.T) {
	folder := t.TempDir()
	for _, archive := range dist(t, "*_linux_"+runtime.GOARCH+".tar.gz") {
		output("tar", "-xf", archive, "-C", folder)
	}
	want := version + " (commit " + commit + ", " + regexp.MustCompile(`toolchain (\S+)`).FindStringSubmatch(read("go.mod"))[1] + ","
	for _, name := range append(imagePrograms(t), "kubectl-detour") {
		args := []string{"--version"}
		if name == "detour" {
			args = nil // a CNI plugin says it if it is called without a verb
		}
		if got := output(filepath.Join(folder, name), args...); !strings.Contains(got, want) {
			t.Errorf("%s says %s, want %s", name, got, want)
		}
	}
}

// index unpacks the image's archive, and returns its index and the index's digest.
func index(t *testing.T) (v1.ImageIndex, v1.Hash) {
	t.Helper()
	folder := t.TempDir()
	output("tar", "-xf", dist(t, "detour_*_image.tar")[0], "-C", folder)
	whole := must(layout.ImageIndexFromPath(folder))(t)
	manifests := must(whole.IndexManifest())(t).Manifests
	if len(manifests) != 1 || manifests[0].Annotations["io.containerd.image.name"] != image+":"+version {
		t.Fatalf("the archive has %+v", manifests)
	}
	return must(whole.ImageIndex(manifests[0].Digest))(t), manifests[0].Digest
}

func TestTheImageHasTheProgramsOfBothArchitectures(t *testing.T) {
	index, _ := index(t)
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest := must(index.IndexManifest())(t)
	var platforms []string
	for _, m := range manifest.Manifests {
		platforms = append(platforms, "linux_"+m.Platform.Architecture)
		i := must(index.Image(m.Digest))(t)
		config := must(i.ConfigFile())(t)
		for _, labels := range []map[string]string{manifest.Annotations, config.Config.Labels} {
			if labels["org.opencontainers.image.version"] != version || labels["org.opencontainers.image.revision"] != commit {
				t.Errorf("%s: labels %v", m.Platform, labels)
			}
		}
		if got, want := fmt.Sprint(config.Created.Unix()), output("git", "-C", clone, "log", "-1", "--format=%ct"); got != want {
			t.Errorf("%s: created at %s, the commit is of %s", m.Platform, got, want)
		}
		layers := must(i.Layers())(t)
		got := unpack(t, must(layers[0].Uncompressed())(t))
		want := unpackFile(t, dist(t, "detour_*_linux_"+m.Platform.Architecture+".tar.gz")[0])
		for _, name := range imagePrograms(t) {
			if !bytes.Equal(got[name].content, want[name].content) || got[name].Mode != 0o755 {
				t.Errorf("%s: %s is not the archive's", m.Platform, name)
			}
		}
	}
	if !slices.Equal(platforms, []string{"linux_amd64", "linux_arm64"}) {
		t.Errorf("the image is for %q", platforms)
	}
}

func TestTheManifestsPinTheImage(t *testing.T) {
	_, digest := index(t)
	want := image + ":" + version + "@" + digest.String()
	for _, name := range append(mesh.Names(), "uninstall") {
		text := read("dist/" + name + ".yaml")
		images := regexp.MustCompile(`(?m)^\s*(?:- )?image: (.*)$`).FindAllStringSubmatch(text, -1)
		if len(images) == 0 {
			t.Errorf("%s.yaml has no image", name)
		}
		for _, i := range images {
			if i[1] != want {
				t.Errorf("%s.yaml has the image %s, want %s", name, i[1], want)
			}
		}
		if name != "uninstall" && !strings.Contains(text, fmt.Sprintf(`"mesh": %q`, name)) {
			t.Errorf("%s.yaml is for another mesh", name)
		}
	}
}

func TestTheChartInstallsThisVersion(t *testing.T) {
	_, digest := index(t)
	entries := unpackFile(t, dist(t, "detour-*.tgz")[0])
	var chart struct{ Version, AppVersion string }
	var values struct {
		Image struct{ Repository, Digest string }
	}
	for name, into := range map[string]any{"Chart": &chart, "values": &values} {
		if err := yaml.Unmarshal(entries["detour/"+name+".yaml"].content, into); err != nil {
			t.Fatal(err)
		}
	}
	if chart.Version != version[1:] || chart.AppVersion != version || values.Image.Repository != image || values.Image.Digest != digest.String() {
		t.Errorf("chart %+v, values %+v, want %s with %s", chart, values, version, digest)
	}
}

// The bill of materials has each module that the linker wrote into a program.
func TestTheBillOfMaterialsIsComplete(t *testing.T) {
	for _, name := range []string{"detour", "kubectl-detour"} {
		var bom cdx.BOM
		text := read("dist/" + name + "_" + version + ".cdx.json")
		if err := json.Unmarshal([]byte(text), &bom); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(bom.SerialNumber, "urn:uuid:") || bom.Metadata.Timestamp != "" || bom.Metadata.Component.Version != version {
			t.Errorf("%s: %q of %s at %q", name, bom.SerialNumber, bom.Metadata.Component.Version, bom.Metadata.Timestamp)
		}
		needs := map[string][]string{}
		for _, d := range *bom.Dependencies {
			needs[d.Ref] = *d.Dependencies
		}
		has := map[string]bool{}
		for _, c := range *bom.Components {
			has[c.BOMRef] = true
		}
		for _, archive := range dist(t, name+"_*.tar.gz") {
			for program, e := range unpackFile(t, archive) {
				info, err := buildinfo.Read(bytes.NewReader(e.content))
				if err != nil {
					continue // LICENSE, README.md
				}
				for _, m := range info.Deps {
					ref := "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
					if !has[ref] || !slices.Contains(needs[strings.TrimSuffix(program, ".exe")], ref) {
						t.Errorf("%s: %s lacks %s", archive, program, ref)
					}
				}
			}
		}
	}
}

func TestKrewsManifestHasEveryPlatform(t *testing.T) {
	var plugin struct {
		Spec struct {
			Version   string
			Platforms []struct{ URI, SHA256, Bin string }
		}
	}
	if err := yaml.Unmarshal([]byte(read("dist/krew.yaml")), &plugin); err != nil {
		t.Fatal(err)
	}
	if plugin.Spec.Version != version || len(plugin.Spec.Platforms) != 6 {
		t.Errorf("%+v", plugin)
	}
	for _, p := range plugin.Spec.Platforms {
		name, ok := strings.CutPrefix(p.URI, "https://github.com/detour-cni/detour/releases/download/"+version+"/")
		if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(read("dist/"+name)))); !ok || sum != p.SHA256 {
			t.Errorf("%s has %s, not %s", p.URI, sum, p.SHA256)
		}
		if _, ok := unpackFile(t, dist(t, name)[0])[p.Bin]; !ok {
			t.Errorf("%s has no %s", name, p.Bin)
		}
	}
}

func TestTheDocumentsInstallThisVersion(t *testing.T) {
	for _, page := range []string{"README.md", "deploy/README.md"} {
		named := regexp.MustCompile(`(?:releases/download/|[?]ref=|detour-cni/detour:|refs/tags/|git checkout )(v[\d.]+\d)`)
		for _, m := range named.FindAllStringSubmatch(read(page), -1) {
			if m[1] != version {
				t.Errorf("%s has %s, the version is %s", page, m[0], version)
			}
		}
	}
}

// Each mistake is refused in one sentence, and dist/ stays as it was.
func TestAMistakeIsRefused(t *testing.T) {
	before := output("sh", "-c", "sha256sum "+clone+"/dist/*")
	for _, tt := range []struct{ name, change, version, want string }{
		{"no version", "true", "1.2", "VERSION is 1.2, not of the form v1.2.3"},
		{"nothing in the changelog", "true", "v99.0.0", "CHANGELOG.md has no section for v99.0.0"},
		{"deploy/ names another version", "true", version + "-rc.1", "deploy/ has"},
		{"a change", "echo >>README.md", version, "there are changes that are not committed: M README.md"},
		{"a new file", "touch new", version, "there are changes that are not committed: ?? new"},
	} {
		copied := filepath.Join(t.TempDir(), "clone")
		output("git", "clone", "--quiet", clone, copied)
		script := exec.CommandContext(t.Context(), "sh", "-c", tt.change+" && scripts/release.sh")
		script.Dir = copied
		script.Env = append(os.Environ(), "VERSION="+tt.version)
		out, err := script.CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "release: "+tt.want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v: %s", tt.name, err, out)
		}
		if _, err := os.Stat(filepath.Join(copied, "dist")); err == nil {
			t.Errorf("%s: there is dist/", tt.name)
		}
	}
	if output("sh", "-c", "sha256sum "+clone+"/dist/*") != before {
		t.Error("dist/ has changed")
	}
}
