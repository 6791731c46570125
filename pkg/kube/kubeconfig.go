package kube

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// configFile is the part of a kubeconfig that detour reads. client-go would read all of it, but costs every start of the plugin a
// millisecond.
type configFile struct {
	Kind           string  `json:"kind"`
	CurrentContext string  `json:"current-context"`
	Contexts       []entry `json:"contexts"`
	Clusters       []entry `json:"clusters"`
	Users          []entry `json:"users"`
}

// entry is a context, a cluster or a user.
type entry struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
	Cluster cluster `json:"cluster"`
	User    user    `json:"user"`
}

type cluster struct {
	Server        string `json:"server"`
	CAFile        string `json:"certificate-authority"`
	CA            []byte `json:"certificate-authority-data"`
	TLSServerName string `json:"tls-server-name"`
	Insecure      bool   `json:"insecure-skip-tls-verify"`
	ProxyURL      string `json:"proxy-url"`
}

type user struct {
	Token           string `json:"token"`
	TokenFile       string `json:"tokenFile"`
	CertificateFile string `json:"client-certificate"`
	Certificate     []byte `json:"client-certificate-data"`
	KeyFile         string `json:"client-key"`
	Key             []byte `json:"client-key-data"`

	// These are refused.
	Exec         any `json:"exec"`
	AuthProvider any `json:"auth-provider"`
	Username     any `json:"username"`
	As           any `json:"as"`
}

// access is how to reach an API server.
type access struct {
	server *url.URL
	proxy  func(*http.Request) (*url.URL, error)
	tls    *tls.Config
	token  string // "" if there is none
}

// transport limits connections to one for each host. Otherwise two concurrent requests dial twice, because neither knows yet that
// the other's connection will speak HTTP/2. With the limit the second waits for the first's handshake and shares its connection,
// or with HTTP/1.1 takes it over.
func (a access) transport() *http.Transport {
	return &http.Transport{Proxy: a.proxy, DialContext: Dialer().DialContext, TLSClientConfig: a.tls, ForceAttemptHTTP2: true, MaxConnsPerHost: 1}
}

// maxFile is the size in bytes of the largest kubeconfig, certificate or token to read.
const maxFile = 4 << 20

// readKubeconfig returns the access of the file's current context. Errors never quote a credential.
func readKubeconfig(path string) (access, error) {
	data, err := hostfile.Read(path, maxFile)
	if err != nil {
		return access{}, hostfile.Advise(err)
	}
	k, err := parseKubeconfig(data)
	if err != nil {
		return access{}, err
	}
	return k.access(filepath.Dir(path))
}

// parseKubeconfig accepts JSON and, more slowly, YAML.
func parseKubeconfig(data []byte) (configFile, error) {
	var k configFile
	if !json.Valid(data) {
		var err error
		if data, err = yaml.YAMLToJSON(data); err != nil {
			return k, withoutQuotes(err)
		}
	}
	err := json.Unmarshal(data, &k)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return k, fmt.Errorf("%s has the wrong type: %s", wrong.Field, wrong.Value)
	}
	if err == nil && k.Kind != "" && k.Kind != "Config" {
		err = fmt.Errorf("it is a %.20q, not a Config", k.Kind)
	}
	return k, err
}

// withoutQuotes cuts off a parser's error at its first quotation, which may be a credential.
func withoutQuotes(err error) error {
	text := oneLine(err.Error())
	if quote := strings.IndexAny(text, "\"'`"); quote >= 0 {
		text = text[:quote] + "..."
	}
	return errors.New(text)
}

// access resolves the current context. Paths are relative to dir.
func (k configFile) access(dir string) (access, error) {
	context, err := find("context", k.Contexts, k.CurrentContext)
	if err != nil {
		return access{}, err
	}
	cluster, err := find("cluster", k.Clusters, context.Context.Cluster)
	if err != nil {
		return access{}, err
	}
	var user entry
	if context.Context.User != "" {
		if user, err = find("user", k.Users, context.Context.User); err != nil {
			return access{}, err
		}
	}
	a, err := cluster.Cluster.access(dir)
	if err != nil {
		return access{}, fmt.Errorf("cluster %s: %w", cluster.Name, err)
	}
	if a.server.Scheme != "https" {
		return a, nil // no credential goes over the wire in the clear
	}
	if err := user.User.addTo(&a, dir); err != nil {
		return access{}, fmt.Errorf("user %s: %w", user.Name, err)
	}
	return a, nil
}

func find(kind string, list []entry, name string) (entry, error) {
	i := slices.IndexFunc(list, func(e entry) bool { return e.Name == name })
	switch {
	case name == "":
		return entry{}, fmt.Errorf("it names no current %s", kind)
	case i < 0:
		return entry{}, fmt.Errorf("there is no %s %q", kind, name)
	}
	return list[i], nil
}

func (c cluster) access(dir string) (access, error) {
	server, err := parseURL(c.Server)
	if err != nil {
		return access{}, fmt.Errorf("read the server's address: %w", err)
	}
	a := access{
		server: server,
		proxy:  http.ProxyFromEnvironment,
		tls:    &tls.Config{ServerName: c.TLSServerName, InsecureSkipVerify: c.Insecure},
	}
	if c.ProxyURL != "" {
		proxy, err := parseURL(c.ProxyURL)
		if err != nil {
			return access{}, fmt.Errorf("read the proxy's address: %w", err)
		}
		a.proxy = http.ProxyURL(proxy)
	}
	ca, err := content(dir, c.CAFile, c.CA)
	if err != nil {
		return access{}, err
	}
	if ca == nil {
		return a, nil // the system's authorities
	}
	a.tls.RootCAs = x509.NewCertPool()
	if !a.tls.RootCAs.AppendCertsFromPEM(ca) {
		return access{}, errors.New("the certificate authority is no certificate in PEM")
	}
	return a, nil
}

// parseURL never quotes the address: there may be a password in it.
func parseURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return nil, errors.New("it is not a URL such as https://10.96.0.1:443")
	}
	return u, nil
}

// addTo adds the user's credential, a token or a client certificate.
func (u user) addTo(a *access, dir string) error {
	for _, refused := range []struct {
		field string
		value any
	}{{"exec", u.Exec}, {"auth-provider", u.AuthProvider}, {"username", u.Username}, {"as", u.As}} {
		if refused.value != nil {
			return fmt.Errorf("detour can't use %s; give the user a tokenFile, a token or a client certificate", refused.field)
		}
	}
	token, err := content(dir, u.TokenFile, nil)
	if err != nil {
		return err
	}
	a.token = cmp.Or(strings.TrimSpace(string(token)), u.Token)
	certificate, err := content(dir, u.CertificateFile, u.Certificate)
	if err != nil {
		return err
	}
	key, err := content(dir, u.KeyFile, u.Key)
	if err != nil || certificate == nil && key == nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("client certificate and key: %w", err)
	}
	a.tls.Certificates = []tls.Certificate{pair}
	return nil
}

// content returns data, or else the file's content, which must not be empty, or nil if there is neither.
func content(dir, path string, data []byte) ([]byte, error) {
	if len(data) > 0 {
		return data, nil
	}
	if path == "" {
		return nil, nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := hostfile.Read(path, maxFile)
	if err == nil && len(bytes.TrimSpace(data)) == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	return data, err
}
