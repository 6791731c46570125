package kube

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// StatusError is an API server's answer other than 200. A 404 that names a pod is also ErrNotFound.
type StatusError struct {
	Code                            int // HTTP
	Verb, Resource, Namespace, Name string
	Message                         string // of the Status object, on one line

	namesObject bool // the server knows the resource: it is the object that is missing
	retryAfter  time.Duration
	kubeconfig  string
}

func newStatusError(t target, resp *http.Response, body []byte, kubeconfig string) *StatusError {
	var status struct {
		Kind    string
		Message string
		Reason  string
		Details struct{ Name string }
	}
	if json.Unmarshal(body, &status) != nil || status.Kind != "Status" {
		status.Message, status.Reason = string(body), ""
	}
	return &StatusError{
		Code:        resp.StatusCode,
		Verb:        "get",
		Resource:    t.groupResource(),
		Namespace:   t.namespace,
		Name:        t.name,
		Message:     oneLine(status.Message),
		namesObject: status.Reason == "NotFound" && status.Details.Name != "",
		retryAfter:  retryAfter(resp.Header),
		kubeconfig:  kubeconfig,
	}
}

// oneLine shortens a message to one line. If it isn't a Status, it may be a proxy's whole page.
func oneLine(s string) string {
	const most = 300 // runes
	line := []rune(strings.Join(strings.Fields(s), " "))
	if len(line) > most {
		return string(line[:most]) + "..."
	}
	return string(line)
}

// Error returns the request, the answer and, after an authentication or authorization failure, what to do.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s %s/%s: %s%s", e.Verb, e.Resource, e.Namespace, e.Name, e.answer(), e.advice())
}

// Is makes a pod's 404 an ErrNotFound.
func (e *StatusError) Is(err error) bool {
	return err == ErrNotFound && e.Code == http.StatusNotFound && e.Resource == "pods" && e.namesObject
}

// Final reports whether the API server would say the same again.
func (e *StatusError) Final() bool { return e.Code != http.StatusTooManyRequests && e.Code < 500 }

func (e *StatusError) answer() string {
	answer := fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code))
	if e.Message == "" || e.Message == http.StatusText(e.Code) {
		return answer
	}
	return answer + ": " + e.Message
}

func (e *StatusError) advice() string {
	switch {
	case e.Code == http.StatusUnauthorized:
		return fmt.Sprintf("; the credential in %s is not accepted: its token may have expired or its ServiceAccount be gone", e.kubeconfig)
	case e.Code == http.StatusForbidden:
		return fmt.Sprintf("; grant get on %s to the plugin's ServiceAccount (deploy/rbac.yaml)", e.Resource)
	case e.Code == http.StatusNotFound && !e.namesObject:
		return fmt.Sprintf("; the server in %s does not answer like a Kubernetes API server", e.kubeconfig)
	}
	return ""
}

// unansweredError is an attempt that ctx ended.
type unansweredError struct {
	connected bool
	before    error // how the attempt before it failed, if there was one
}

func (e *unansweredError) Error() string {
	text := "no connection came up in time"
	if e.connected {
		text = "connected, but no complete answer came"
	}
	if e.before != nil {
		text += "; before that, " + plain(e.before)
	}
	return text
}

// noAnswerError is a request that was tried until its time was over.
type noAnswerError struct {
	target   target
	server   string
	within   time.Duration
	attempts int
	last     error
	cause    error // of ctx's end
}

func (e *noAnswerError) Error() string {
	attempts := "1 attempt"
	if e.attempts > 1 {
		attempts = fmt.Sprintf("%d attempts", e.attempts)
	}
	return fmt.Sprintf("get %s: no answer from %s within %s (%s): %s",
		e.target, e.server, e.within.Round(10*time.Millisecond), attempts, plain(e.last))
}

func (e *noAnswerError) Unwrap() []error { return []error{e.cause, e.last} }

// plain returns err's text without the object's name, which the text around it has.
func plain(err error) string {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status.answer()
	}
	return err.Error()
}

// named adds the object's name to an error that lacks it.
func named(t target, err error) error {
	if _, ok := errors.AsType[*StatusError](err); ok {
		return err
	}
	if refusedTLS(err) {
		return fmt.Errorf("get %s: no trusted connection: %w%s", t, err, clockAdvice(err))
	}
	return fmt.Errorf("get %s: %w", t, err)
}

// clockAdvice says what to look at if a certificate is not valid at this time.
func clockAdvice(err error) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "; is this node's clock right?"
	}
	return ""
}
