package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// render returns the kubeconfig as JSON, which the plugin reads faster than other YAML. It has only the token's path, no secret.
func (k Kubeconfig) render() ([]byte, error) {
	type object = map[string]any
	cluster := object{"server": k.Server}
	if k.CAFile != "" {
		ca, err := readSome(k.CAFile)
		if err != nil {
			return nil, err
		}
		cluster["certificate-authority-data"] = ca
	}
	return json.MarshalIndent(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"clusters":        []object{{"name": "detour", "cluster": cluster}},
		"users":           []object{{"name": "detour", "user": object{"tokenFile": filepath.Join(k.HostDir, TokenName)}}},
		"contexts":        []object{{"name": "detour", "context": object{"cluster": "detour", "user": "detour"}}},
		"current-context": "detour",
	}, "", "  ")
}

// credentials copies the token and writes the kubeconfig. present reports whether the host has both, in any version.
func (i *Installer) credentials(r *round) (present bool, _ error) {
	k, tokenPath, configPath := i.conf.Kubeconfig, i.confPath(TokenName), i.confPath(KubeconfigName)
	err := errors.Join(
		i.secret(r, PartToken, tokenPath, func() ([]byte, error) { return readSome(k.TokenFile) }),
		i.secret(r, PartKubeconfig, configPath, k.render),
	)
	return isFilled(tokenPath) && isFilled(configPath), err
}

// isFilled reports whether a path is a file that is not empty.
func isFilled(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() > 0
}

// readSome reads a file and fails if it is empty.
func readSome(path string) ([]byte, error) {
	content, err := hostfile.Read(path, maxConfSize)
	if err == nil && len(bytes.TrimSpace(content)) == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	return content, err
}

// secret makes a file have that content, readable by root only.
func (i *Installer) secret(r *round, part Part, path string, read func() ([]byte, error)) error {
	content, err := read()
	if err != nil {
		return fmt.Errorf("install %s: %w", part, err)
	}
	wrong := ""
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		wrong = "missing"
	case err != nil:
		return fmt.Errorf("install %s: %w", part, err)
	case info.Mode() != rootOnly.mode: // it may be a link
		wrong = "wrong mode " + info.Mode().String()
	default:
		if now, err := hostfile.Read(path, maxConfSize); err != nil || !bytes.Equal(now, content) {
			wrong = "wrong content"
		}
	}
	return r.ensure(part, path, string(content), wrong, func() error {
		return i.files.write(path, bytes.NewReader(content), rootOnly)
	})
}

func (i *Installer) removeCredentials(r *round) error {
	var failed error
	for _, f := range []struct {
		part Part
		name string
	}{{PartKubeconfig, KubeconfigName}, {PartToken, TokenName}} {
		path := i.confPath(f.name)
		was, err := i.files.remove(path)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove %s: %w", f.part, hostfile.Advise(err)))
		}
		if was {
			r.Changes = append(r.Changes, Change{Part: f.part, File: path, Reason: "not wanted"})
		}
	}
	return failed
}

// binary copies the plugin. present reports whether the host has a program of that name, in any version.
func (i *Installer) binary(r *round) (present bool, _ error) {
	path := i.binaryPath()
	wrong, err := i.wrongBinary(path)
	if err != nil {
		err = fmt.Errorf("install %s: %w", PartBinary, err)
	} else {
		err = r.ensure(PartBinary, path, "", wrong, func() error { return i.files.copy(i.conf.Plugin, path, anyone) })
	}
	info, statErr := os.Stat(path)
	return statErr == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0, err
}

// wrongBinary says what is wrong with the installed plugin, "" if nothing is. It reads contents only after a file has changed.
func (i *Installer) wrongBinary(path string) (string, error) {
	source, err := os.Stat(i.conf.Plugin)
	if err != nil {
		return "", err
	}
	installed, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "missing", nil
	}
	if err != nil {
		return "", err
	}
	if installed.Mode() != anyone.mode { // it may be a link
		return "wrong mode " + installed.Mode().String(), nil
	}
	if installed.Size() != source.Size() {
		return "another version", nil
	}
	compared := [2]identity{identify(source), identify(installed)}
	if compared == i.compared {
		return "", nil
	}
	same, err := sameContent(i.conf.Plugin, path)
	if err != nil {
		return "", err
	}
	if !same {
		return "another version", nil
	}
	// A file's times are coarse: a file that has just changed may change again and look the same.
	if time.Since(compared[1].ctime) > time.Second {
		i.compared = compared
	}
	return "", nil
}
