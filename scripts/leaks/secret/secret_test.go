package secret

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"testing"
)

func TestFindKnowsTokensAndKeys(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, _ := x509.MarshalECPrivateKey(key)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
	for _, block := range []pem.Block{{Type: "EC PRIVATE KEY", Bytes: sec1}, {Type: "PRIVATE KEY", Bytes: pkcs8}, {Type: "RSA PRIVATE KEY", Bytes: pkcs8}} {
		text := pem.EncodeToMemory(&block)
		for _, found := range []string{Find("key: " + string(text)), Find("key: " + base64.StdEncoding.EncodeToString(text))} {
			if found == "" {
				t.Errorf("%s is not found", block.Type)
			}
		}
	}
	const token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2ln-bmF0_dXJl"
	if got := Find(`msg="Authorization: Bearer ` + token + `" x`); got != token {
		t.Errorf("got %q", got)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pkcs8})
	for _, harmless := range []string{"", "the token is empty", "/etc/cni/net.d/detour-token", `{"type":"detour"}`, string(public)} {
		if got := Find(harmless); got != "" {
			t.Errorf("%q is taken for a secret", got)
		}
	}
}
