package install

import (
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// TokenExpiry is when the token on the host expires, by its own claim. It is the zero time if there is no token, or one without
// this claim.
func (k *Keeper) TokenExpiry() time.Time {
	if k.conf.Kubeconfig == nil {
		return time.Time{}
	}
	token, err := hostfile.Read(filepath.Join(k.conf.ConfDir, TokenName), maxConfSize)
	if err != nil {
		return time.Time{}
	}
	return expiry(string(token))
}

// RenewToken copies a token to the host, without a Kubeconfig in the configuration. It does nothing if the host has none, and is
// idempotent. A token ends with its pod: this one lets the plugin ask the API server while no agent runs.
func (i *Installer) RenewToken(file string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	path := i.confPath(TokenName)
	if !exists(path) {
		return nil
	}
	return i.secret(&round{}, PartToken, path, func() ([]byte, error) { return readSome(file) })
}

// expiry reads the claim exp of a JSON Web Token (RFC 7519).
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	var claims struct{ Exp int64 }
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 {
		return time.Time{}
	}
	return time.Unix(claims.Exp, 0)
}
