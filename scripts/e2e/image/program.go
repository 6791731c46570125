package image

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program returns a program of the host's at its own path, with the shared libraries that the dynamic linker finds for it.
func Program(file string) ([]File, error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, fmt.Errorf("find program %s: %w", file, err)
	}
	files := []File{{Path: file, From: real}}
	static, err := isStatic(real)
	if err != nil || static {
		return files, err
	}
	out, err := exec.Command("ldd", real).Output()
	if err != nil {
		return nil, fmt.Errorf("find the libraries of %s: %w", real, err)
	}
	for line := range strings.Lines(string(out)) {
		// `	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f...)` or `	/lib64/ld-linux-x86-64.so.2 (0x7f...)`
		for word := range strings.FieldsSeq(line) {
			if strings.HasPrefix(word, "/") {
				files = append(files, File{Path: word, From: word})
			}
		}
	}
	return files, nil
}

func isStatic(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	program, err := elf.NewFile(f)
	if err != nil {
		return false, fmt.Errorf("read program %s: %w", file, err)
	}
	return program.Section(".interp") == nil, nil
}
