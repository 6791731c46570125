package cache

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// Silence is longer than an API server lets its watches be silent: it sends a bookmark every minute once it has seen any object of
// the kind change. Before that, what is listed is listed again.
const Silence = 3 * time.Minute

var errSilent = errors.New("the API server has been silent for too long")

// talking ends requests whose answer falls silent for so long. client-go leaves the end of a watch to the API server, and a proxy in
// between may keep a dead one open for ever.
type talking struct {
	next    http.RoundTripper
	silence time.Duration
}

type heardKey struct{}

// listening lets talking call heard with each part of a watch, and at the end of any other answer that is no failure.
func listening(ctx context.Context, heard func()) context.Context {
	return context.WithValue(ctx, heardKey{}, heard)
}

// RoundTrip makes the request.
func (t talking) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, stop := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(t.silence, func() { stop(errSilent) })
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		timer.Stop()
		stop(nil)
		return nil, err
	}
	heard, ok := ctx.Value(heardKey{}).(func())
	if !ok || resp.StatusCode != http.StatusOK {
		heard = func() {}
	}
	body := &talkingBody{ReadCloser: resp.Body, stop: func() { timer.Stop(); stop(nil) }}
	body.said, body.ended = func() { timer.Reset(t.silence) }, heard
	if r.URL.Query().Get("watch") == "true" {
		body.said, body.ended = func() { timer.Reset(t.silence); heard() }, func() {}
	}
	resp.Body = body
	return resp, nil
}

// talkingBody is an answer's body. Read is called again and again as long as somebody listens.
type talkingBody struct {
	io.ReadCloser
	said, ended, stop func()
}

// Read reads, and begins to wait anew.
func (b *talkingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.said()
	}
	if errors.Is(err, io.EOF) {
		b.ended()
	}
	return n, err
}

// Close ends the answer.
func (b *talkingBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}
