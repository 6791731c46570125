// Command mkimage writes a container image for one architecture or more as an OCI archive, without docker or a network, and
// prints the digest of its index:
//
//	mkimage -name example.org/detour:1 -o image.tar amd64=FOLDER arm64=FOLDER
//
// The image has the programs of its architecture's folder, which must be static, in its top folder.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

func main() {
	digest, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage: "+err.Error())
		os.Exit(1)
	}
	fmt.Println(digest)
}

func run() (v1.Hash, error) {
	i := image.Image{Labels: map[string]string{}}
	flag.StringVar(&i.Name, "name", "", "name of the image, with its tag")
	flag.Func("label", "KEY=VALUE: a label, which is an annotation of the index as well", func(text string) error {
		key, value, _ := strings.Cut(text, "=")
		i.Labels[key] = value
		return nil
	})
	created := flag.Int64("created", 0, "time of its creation, in seconds since 1970")
	entrypoint := flag.String("entrypoint", "", "path of the program that runs unless another is named")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	i.Created = time.Unix(*created, 0)
	if *entrypoint != "" {
		i.Entrypoint = []string{*entrypoint}
	}
	if i.Name == "" || *out == "" || flag.NArg() == 0 {
		return v1.Hash{}, errors.New("-name, -o and ARCHITECTURE=FOLDER are needed")
	}
	var images []image.Image
	for _, arg := range flag.Args() {
		var folder string
		i.Architecture, folder, _ = strings.Cut(arg, "=")
		programs, err := os.ReadDir(folder)
		if err != nil {
			return v1.Hash{}, err
		}
		i.Files = nil
		for _, p := range programs {
			i.Files = append(i.Files, image.File{Path: "/" + p.Name(), From: filepath.Join(folder, p.Name())})
		}
		images = append(images, i)
	}
	return write(*out, images)
}

func write(out string, images []image.Image) (v1.Hash, error) {
	file, err := os.Create(out)
	if err != nil {
		return v1.Hash{}, err
	}
	defer file.Close()
	digest, err := image.Write(file, images...)
	return digest, errors.Join(err, file.Close())
}
