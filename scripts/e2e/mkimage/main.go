// Command mkimage writes a container image as an OCI archive, without docker or a network:
//
//	mkimage -name detour:1 -arch arm64 -o image.tar PROGRAM...
//
// The programs, which must be static, are in the image's top folder.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

func main() { os.Exit(run()) }

func run() int {
	i := image.Image{}
	flag.StringVar(&i.Name, "name", "", "name of the image, with its tag")
	flag.StringVar(&i.Architecture, "arch", runtime.GOARCH, "architecture of the programs")
	entrypoint := flag.String("entrypoint", "", "path of the program that runs unless another is named")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	for _, program := range flag.Args() {
		i.Files = append(i.Files, image.File{Path: "/" + filepath.Base(program), From: program})
	}
	if *entrypoint != "" {
		i.Entrypoint = []string{*entrypoint}
	}
	if err := write(i, *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage: "+err.Error())
		return 1
	}
	return 0
}

func write(i image.Image, out string) error {
	if i.Name == "" || out == "" || len(i.Files) == 0 {
		return errors.New("-name, -o and a program are needed")
	}
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	defer file.Close()
	return errors.Join(i.Write(file), file.Close())
}
