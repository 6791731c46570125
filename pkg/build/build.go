// Package build says which version of detour a program is.
package build

import "runtime"

// Version and Commit are set by the linker (scripts/build.sh). Version is git's tag, or what git describe makes of it between two
// tags; Commit is git's full hash.
var (
	Version = "development"
	Commit  = "unknown"
)

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
