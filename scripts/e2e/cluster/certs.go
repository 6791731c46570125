package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the cluster's certificates. Its key is in no file.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// subject is who proves itself with a certificate, in NAME.crt and NAME.key. It is a client, or a server if it has names.
type subject struct {
	file, name, group string
	servesAt          []string
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{key: key}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "detour-e2e"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.certificate = template // signs itself
	der, err := a.sign(template, key)
	if err != nil {
		return nil, err
	}
	a.certificate, err = x509.ParseCertificate(der)
	return a, err
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = time.Now().Add(24 * time.Hour)
	return x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
}

// issue writes ca.crt and the subjects' certificates and keys into a folder.
func (a *authority) issue(dir string, subjects ...subject) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE", a.certificate.Raw); err != nil {
		return err
	}
	for _, s := range subjects {
		key, err := writeKey(filepath.Join(dir, s.file+".key"))
		if err != nil {
			return err
		}
		der, err := a.sign(s.template(), key)
		if err != nil {
			return fmt.Errorf("sign the certificate of %s: %w", s.name, err)
		}
		if err := writePEM(filepath.Join(dir, s.file+".crt"), "CERTIFICATE", der); err != nil {
			return err
		}
	}
	return nil
}

func (s subject) template() *x509.Certificate {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: s.name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if s.group != "" {
		t.Subject.Organization = []string{s.group}
	}
	for _, at := range s.servesAt {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(at); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, at)
		}
	}
	return t
}

func writeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
