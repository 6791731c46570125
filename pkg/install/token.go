package install

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// TokenExpiry is when the token on the host expires, by its own claim. It is the zero time if there is no token, or one without
// this claim.
func (k *Keeper) TokenExpiry() time.Time {
	if k.conf.Kubeconfig == nil {
		return time.Time{}
	}
	token, err := os.ReadFile(filepath.Join(k.conf.ConfDir, TokenName))
	if err != nil {
		return time.Time{}
	}
	return expiry(string(token))
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
