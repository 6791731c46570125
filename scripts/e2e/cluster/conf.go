package cluster

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed conf
var confs embed.FS

// values are what the files of conf are made with.
type values struct {
	ControlIP4, PodNetwork string
	PodRange4, PodRange6   string // the first node's, if there is no other
	CgroupRoot, User, MTU  string
}

// renderConf makes the text of the file of that name in conf.
func renderConf(conf string, v values) (string, error) {
	t, err := template.New(conf).ParseFS(confs, "conf/"+conf)
	if err != nil {
		return "", err
	}
	v.ControlIP4, v.PodNetwork = controlIP4, podNetwork
	if v.PodRange4 == "" {
		v.PodRange4, v.PodRange6 = podRange4, podRange6
	}
	var text strings.Builder
	err = t.Execute(&text, v)
	return text.String(), err
}

// writeConf makes a file from the one of its name in conf, or from that of another name.
func writeConf(path, conf string, v values) error {
	text, err := renderConf(conf, v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}
