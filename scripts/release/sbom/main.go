// Command sbom writes a software bill of materials of Go programs in CycloneDX's JSON, from what the linker wrote into them:
//
//	sbom -version v0.1.0 FILE... >detour.cdx.json
//
// Programs of the same name, built for other platforms, are one component. There is no time, and the serial number, without which
// GitHub attests nothing, is made of the content: the same programs give the same bytes.
package main

import (
	"bytes"
	"debug/buildinfo"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
)

func main() {
	version := flag.String("version", "", "version of the programs")
	flag.Parse()
	bom, err := bomOf(*version, flag.Args())
	if err == nil {
		err = write(os.Stdout, bom)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbom: "+err.Error())
		os.Exit(1)
	}
}

func write(w io.Writer, bom *cdx.BOM) error {
	var text bytes.Buffer
	if err := encode(&text, bom); err != nil {
		return err
	}
	bom.SerialNumber = uuid.NewSHA1(uuid.NameSpaceURL, text.Bytes()).URN()
	return encode(w, bom)
}

func encode(w io.Writer, bom *cdx.BOM) error {
	return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
}

func bomOf(version string, files []string) (*cdx.BOM, error) {
	components := map[string]cdx.Component{} // by reference
	needs := map[string]map[string]bool{}
	var main cdx.Component
	for _, file := range files {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, err
		}
		info.Main.Version = version
		main = component(cdx.ComponentTypeApplication, &info.Main)
		program := cdx.Component{Type: cdx.ComponentTypeApplication, Name: strings.TrimSuffix(filepath.Base(file), ".exe"), Version: version}
		program.BOMRef = program.Name
		components[program.BOMRef] = program
		add(needs, main.BOMRef, program.BOMRef)
		goes := debug.Module{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")} // as scanners call it
		for _, m := range append(info.Deps, &goes) {
			if m.Replace != nil {
				m = m.Replace
			}
			c := component(cdx.ComponentTypeLibrary, m)
			components[c.BOMRef] = c
			add(needs, program.BOMRef, c.BOMRef)
		}
	}
	main.Licenses = &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &main}
	var all []cdx.Component
	for _, ref := range slices.Sorted(maps.Keys(components)) {
		all = append(all, components[ref])
	}
	bom.Components = &all
	var dependencies []cdx.Dependency
	for _, ref := range slices.Sorted(maps.Keys(needs)) {
		of := slices.Sorted(maps.Keys(needs[ref]))
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &of})
	}
	bom.Dependencies = &dependencies
	return bom, nil
}

func component(kind cdx.ComponentType, m *debug.Module) cdx.Component {
	url := "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
	return cdx.Component{BOMRef: url, Type: kind, Name: m.Path, Version: m.Version, PackageURL: url}
}

func add(to map[string]map[string]bool, from, ref string) {
	if to[from] == nil {
		to[from] = map[string]bool{}
	}
	to[from][ref] = true
}
