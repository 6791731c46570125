// Package build says which version of detour a program is.
package build

import (
	"runtime"
	"strings"
)

// Version and Commit are set by the linker (scripts/build.sh). Version is git's tag, or what git describe makes of it between two
// tags; Commit is git's full hash.
var (
	Version = "development"
	Commit  = "unknown"
)

// Image is the published image of this version, "" for what was built between two releases.
func Image() string {
	if !strings.HasPrefix(Version, "v") || strings.Contains(Version, "-") {
		return ""
	}
	return "ghcr.io/detour-cni/detour:" + Version
}

// Info is what a program says of itself.
type Info struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"` // such as linux/arm64
}

// Get returns this program's.
func Get() Info {
	return Info{Version: Version, Commit: Commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
}

// String is one line: version, commit, Go and platform.
func (i Info) String() string {
	return i.Version + " (commit " + i.Commit + ", " + i.Go + ", " + i.Platform + ")"
}
