package cluster

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

//go:embed conf
var confs embed.FS

// values are what the files of conf are made with. See address for the addresses.
type values struct {
	ControlIP4           string
	PodRange4, PodRange6 string
	CgroupRoot           string
	User                 string
}

// writeConf makes a file from the one of its name in conf, or from that of another name.
func (c *Cluster) writeConf(path, conf string, v values) error {
	t, err := template.New(conf).ParseFS(confs, "conf/"+conf)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	v.ControlIP4, v.PodRange4, v.PodRange6 = controlIP4, podRange4, podRange6
	if err := t.Execute(file, v); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return file.Close()
}
