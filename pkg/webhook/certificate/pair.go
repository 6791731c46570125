package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/util/cert"
)

// pair is a serving certificate with its key, as the Secret has them and as TLS needs them. The certificate of the authority that
// signed it follows it, unless somebody else keeps the Secret.
type pair struct {
	crt, key []byte
	tls      *tls.Certificate
}

// newPair makes a certificate for host, signed by an authority of its own, whose key nobody ever has. Both begin an hour ago, as
// clocks differ, and end after life.
func newPair(host string, life time.Duration) (*pair, error) {
	const past = time.Hour // of client-go's
	crt, key, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{Host: host, MaxAge: life + past})
	if err != nil {
		return nil, fmt.Errorf("make a certificate for %s: %w", host, err)
	}
	return parsePair(crt, key)
}

func parsePair(crt, key []byte) (*pair, error) {
	if len(crt) == 0 && len(key) == 0 {
		return nil, errors.New("there is none")
	}
	made, err := tls.X509KeyPair(crt, key)
	if err != nil {
		return nil, err
	}
	return &pair{crt: crt, key: key, tls: &made}, nil
}

// check says why the certificate can't serve host now.
func (p *pair) check(host string, now time.Time) error {
	leaf := p.tls.Leaf
	switch {
	case leaf.VerifyHostname(host) != nil:
		return leaf.VerifyHostname(host)
	case now.After(leaf.NotAfter):
		return fmt.Errorf("it expired at %s", leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("it is not valid before %s", leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

// checkAuthority says why the certificate's authority can't vouch for it now.
func (p *pair) checkAuthority(now time.Time) error {
	authority, err := x509.ParseCertificate(p.tls.Certificate[len(p.tls.Certificate)-1])
	if err != nil {
		return fmt.Errorf("read its authority: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	_, err = p.tls.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now})
	return err
}

// authority is the certificate of the authority, for a caBundle.
func (p *pair) authority() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: p.tls.Certificate[len(p.tls.Certificate)-1]})
}

func (p *pair) expiry() time.Time { return p.tls.Leaf.NotAfter }

func (p *pair) equal(other *pair) bool {
	return p != nil && other != nil && bytes.Equal(p.tls.Leaf.Raw, other.tls.Leaf.Raw)
}
