package webhook

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/version"
)

func canceled(t *testing.T) context.Context {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	return ctx
}

func TestNativeSidecarsAreThereFrom129On(t *testing.T) {
	t.Parallel()
	for v, want := range map[version.Info]string{
		{Major: "1", Minor: "28"}:  "Kubernetes has them from 1.29 on and this is 1.28",
		{Major: "1", Minor: "28+"}: "Kubernetes has them from 1.29 on and this is 1.28+",
		{Major: "1", Minor: "29"}:  "",
		{Major: "1", Minor: "34+"}: "",
		{Major: "2", Minor: "0"}:   "",
		{Major: "", Minor: "x"}:    "Kubernetes has them from 1.29 on and this is .x",
	} {
		c := &cluster{}
		if native, why := c.sidecars(); native || why != "the cluster's version is not known" {
			t.Errorf("before it is known: %v, %q", native, why)
		}
		c.known.Store(&v)
		if native, why := c.sidecars(); native != (want == "") || why != want {
			t.Errorf("%s.%s: %v, %q", v.Major, v.Minor, native, why)
		}
	}
}

// What was known stays known while the API server does not answer.
func TestTheVersionIsAskedForAgain(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	answers := []error{nil, errors.New("it is away")}
	c := &cluster{log: slog.New(slog.DiscardHandler), pause: func(_ context.Context, d time.Duration) {
		if want := map[int]time.Duration{1: versionAge, 0: versionRetry}[len(answers)]; d != want {
			t.Errorf("with %d answers to come it waits %s, not %s", len(answers), d, want)
		}
		if len(answers) == 0 {
			stop()
		}
	}}
	c.get = func(_ context.Context, path string, out any) error {
		err := answers[0]
		answers = answers[1:]
		if path == "/version" && err == nil {
			*out.(*version.Info) = version.Info{Major: "1", Minor: "30"}
		}
		return err
	}
	c.run(ctx)
	if native, why := c.sidecars(); !native {
		t.Error(why)
	}
}
