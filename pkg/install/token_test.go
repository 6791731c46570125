package install

import (
	"encoding/base64"
	"os"
	"testing"
	"time"
)

// jwt is a token with these claims.
func jwt(claims string) string {
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

func TestATokenSaysWhenItExpires(t *testing.T) {
	t.Parallel()
	const exp = 1_795_000_000
	for token, want := range map[string]time.Time{
		jwt(`{"aud":["https://kubernetes.default.svc"],"exp":1795000000,"iat":1794996400}`): time.Unix(exp, 0),
		jwt(`{"iat":1794996400}`): {},
		jwt(`{"exp":"soon"}`):     {},
		jwt(`{"exp":-1}`):         {},
		jwt(`{`):                  {},
		"":                        {},
		"opaque":                  {},
		"a.%.c":                   {},
	} {
		if got := expiry(token); !got.Equal(want) {
			t.Errorf("%q expires at %v, want %v", token, got, want)
		}
	}
}

func TestTheTokenOnTheHostIsWatched(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]string{"10-net.conflist": bridge})
	put(t, w.Kubeconfig.TokenFile, jwt(`{"exp":1795000000}`))
	if got := w.keeper(t.Output()).TokenExpiry(); !got.IsZero() {
		t.Errorf("before there is a token it expires at %v", got)
	}
	k, stop := w.keep(t)
	eventually(t, "the token is on the host", func() bool { return k.TokenExpiry().Equal(time.Unix(1_795_000_000, 0)) })
	put(t, w.Kubeconfig.TokenFile, jwt(`{"exp":1795003600}`))
	eventually(t, "the next one, too", func() bool { return k.TokenExpiry().Equal(time.Unix(1_795_003_600, 0)) })
	stop()
	if err := os.Remove(w.path(TokenName)); err != nil {
		t.Fatal(err)
	}
	if got := k.TokenExpiry(); !got.IsZero() {
		t.Errorf("a token that is gone expires at %v", got)
	}
}

// While detour is being uninstalled, no agent runs.
func TestATokenThatIsOnTheHostCanBeRenewedWithoutAnAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]string{"10-net.conflist": bridge})
	next := w.Kubeconfig.TokenFile + "2"
	put(t, next, "token 2")
	renew := func() string {
		t.Helper()
		c := w.Config
		c.Kubeconfig = nil
		i, err := New(c)
		if err == nil {
			err = i.RenewToken(next)
		}
		if err != nil {
			t.Fatal(err)
		}
		return contents(t, w.ConfDir)[TokenName]
	}
	if got := renew(); got != "" {
		t.Errorf("a host without a token gets %q", got)
	}
	w.reconcile()
	for range 2 {
		if got := renew(); got != "token 2" {
			t.Errorf("the host has %q", got)
		}
	}
}
