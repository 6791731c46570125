package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/detour-cni/detour/pkg/apitest/injector"
)

// inject serves a mesh's webhook, from now on, with a certificate of its own, which it prints.
func inject(addr string, hook injector.Webhook) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	certificate, err := selfSigned(net.ParseIP(host))
	if err != nil {
		return err
	}
	socket, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		return err
	}
	go http.Serve(socket, hook) //nolint:errcheck // until the process ends
	return pem.Encode(os.Stdout, &pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
}

// selfSigned makes a certificate for an address that is its own authority.
func selfSigned(ip net.IP) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		IPAddresses:           []net.IP{ip},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate for %s: %w", ip, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
