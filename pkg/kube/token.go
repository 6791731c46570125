package kube

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// TokenTimes says from when to when a kubeconfig's token is valid, by the token's own claims (RFC 7519). A time is zero if there is no
// token, or one without that claim.
func TokenTimes(kubeconfig string) (from, until time.Time, err error) {
	a, err := readKubeconfig(kubeconfig)
	if err != nil {
		return from, until, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	parts := strings.Split(a.token, ".")
	if len(parts) != 3 {
		return from, until, nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct{ Nbf, Exp int64 }
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return from, until, nil //nolint:nilerr // it is no such token
	}
	return timeOf(claims.Nbf), timeOf(claims.Exp), nil
}

func timeOf(claim int64) time.Time {
	if claim <= 0 {
		return time.Time{}
	}
	return time.Unix(claim, 0)
}
