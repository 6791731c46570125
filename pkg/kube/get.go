package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	maxBody      = 4 << 20 // bytes; etcd takes no object above 1.5 MiB
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = time.Second
)

// get returns the object's JSON. It retries with exponential backoff until ctx is done, unless an error is permanent.
func (a *API) get(ctx context.Context, t target) ([]byte, error) {
	path, err := t.path()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var last error
	for attempt := 1; ; attempt++ {
		body, err := a.try(ctx, t, path)
		if err == nil {
			return body, nil
		}
		if permanent(err) {
			return nil, named(t, err)
		}
		if unanswered, hung := errors.AsType[*unansweredError](err); hung {
			unanswered.before = last
		}
		last = err
		if ctx.Err() == nil {
			a.sleep(ctx, pause(attempt, err))
		}
		if ctx.Err() != nil {
			return nil, &noAnswerError{target: t, server: a.server, within: time.Since(start), attempts: attempt, last: last, cause: context.Cause(ctx)}
		}
	}
}

// try makes one attempt. It fails with a *StatusError, an *unansweredError or the transport's error.
func (a *API) try(ctx context.Context, t target, path string) ([]byte, error) {
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	resp, body, err := a.roundTrip(traced, path) //nolint:bodyclose // roundTrip has read and closed it
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &unansweredError{connected: connected.Load()}
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, newStatusError(t, resp, body, a.kubeconfig)
	case !isObject(body):
		return nil, errNoObject
	}
	return body, nil
}

// errNoObject is an answer that a proxy has cut without a trace, or that does not come from an API server.
var errNoObject = errors.New("the answer is not the JSON of an object")

func isObject(body []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) && json.Valid(body)
}

func (a *API) roundTrip(ctx context.Context, path string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return nil, nil, permanentError{err}
	}
	req.Header = a.header.Clone()
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, nil, withoutURL(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxBody {
		return nil, nil, permanentError{fmt.Errorf("the answer is larger than %d MiB", maxBody>>20)}
	}
	return resp, body, nil
}

// withoutURL removes http.Client's prefix from an error: our own errors name the object.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// permanentError is a failure that a retry can't fix.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// permanent reports whether the next attempt would certainly fail in the same way.
func permanent(err error) bool {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status.Final()
	}
	if _, ok := errors.AsType[permanentError](err); ok {
		return true
	}
	return refusedTLS(err)
}

// refusedTLS reports whether one side refused the other's certificate, or the server doesn't speak TLS.
func refusedTLS(err error) bool {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var plain tls.RecordHeaderError
	return errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &hostname) ||
		errors.As(err, &invalid) || errors.As(err, &plain) || errors.Is(err, http.ErrSchemeMismatch)
}

// pause returns how long to wait after a failed attempt: 50 ms, doubled up to 1 s, less up to a half so that the plugins of
// a node don't come back in step, or what the server asks for if that is longer.
func pause(attempt int, err error) time.Duration {
	full := min(firstBackoff<<min(attempt-1, 10), maxBackoff)
	wait := full/2 + rand.N(full/2)
	if status, ok := errors.AsType[*StatusError](err); ok {
		wait = max(wait, status.retryAfter)
	}
	return wait
}

// retryAfter reads the header in seconds, the only form that an API server uses; 0 if there is none.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
