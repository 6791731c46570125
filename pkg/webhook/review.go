package webhook

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-cni/detour/pkg/admission"
)

// maxReview is the length in bytes of the longest review: an update has two objects, and the API server takes none above 3 MiB.
const maxReview = 8 << 20

// maxReviews is how many small reviews are read and judged at once; the others wait. Anyone in the cluster may send them, and the memory that
// they take must be bounded.
const maxReviews = 8

// What a value of JSON becomes is up to 300 times as long as its text: [{},{}]. A review has at most maxValues, counted by its commas.
// Of those that are longer than smallReview bytes, or have more than smallValues, one is judged at a time.
const (
	maxValues   = 50_000
	smallReview = 128 << 10
	smallValues = 5_000
)

// answer is what becomes of a request.
type answer struct {
	admission.Verdict
	patch []admission.Op
}

// verdict is the metric's name for it.
func (a answer) verdict() string {
	switch {
	case a.Denial != "":
		return "denied"
	case len(a.patch) > 0:
		return "patched"
	case len(a.Warnings) > 0:
		return "warned"
	}
	return "allowed"
}

// Reviews serves the webhook's paths. It is made by NewReviews.
type Reviews struct {
	paths map[string]path
	slots chan struct{}
	large chan struct{} // the one slot for large reviews
	o     Observer
}

// Observer hears of each request. Both functions must be safe for concurrent use.
type Observer struct {
	// Done is told the path, "other" if there is no such path, and a verdict: allowed, warned, patched, denied or malformed.
	Done func(path, verdict string, took time.Duration)
	// Refused is told what is denied, and the sentence.
	Refused func(path string, request *admissionv1.AdmissionRequest, sentence string)
}

// NewReviews returns the handler of reviews.
func NewReviews(j Judge, o Observer) *Reviews {
	return &Reviews{paths: j.paths(), slots: make(chan struct{}, maxReviews), large: make(chan struct{}, 1), o: o}
}

// badInput is a request that is no review. The API server sends none.
type badInput struct {
	code int
	error
}

func bad(code int, format string, args ...any) error {
	return badInput{code, fmt.Errorf(format, args...)}
}

// ServeHTTP answers one review.
func (s *Reviews) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	name, verdict := r.URL.Path, "malformed"
	answer, err := s.review(w, r)
	var wrong badInput
	switch {
	case errors.As(err, &wrong):
		http.Error(w, wrong.Error(), wrong.code)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		verdict = answer.verdict
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer.body) //nolint:errcheck // the API server has gone, or it tells
	}
	if _, known := s.paths[name]; !known {
		name = "other" // no label has a value that somebody else can choose
	}
	s.o.Done(name, verdict, time.Since(began))
}

// response is an answer on its way.
type response struct {
	body    []byte
	verdict string
}

func (s *Reviews) review(w http.ResponseWriter, r *http.Request) (response, error) {
	path, ok := s.paths[r.URL.Path]
	switch {
	case !ok:
		return response{}, bad(http.StatusNotFound, "%.100q is none of the webhook's paths %s", r.URL.Path, strings.Join(slices.Sorted(maps.Keys(s.paths)), ", "))
	case r.Method != http.MethodPost:
		return response{}, bad(http.StatusMethodNotAllowed, "a review is a POST, not a %.20s", r.Method)
	}
	places := s.slots
	if r.ContentLength < 0 || r.ContentLength > smallReview {
		places = s.large
	}
	if err := take(r.Context(), places); err != nil {
		return response{}, err
	}
	defer func() { <-places }()
	data, err := readReview(http.MaxBytesReader(w, r.Body, maxReview))
	if err != nil {
		return response{}, err
	}
	if places != s.large && bytes.Count(data, comma) > smallValues {
		if err := take(r.Context(), s.large); err != nil {
			return response{}, err
		}
		defer func() { <-s.large }()
	}
	request, err := decode(data)
	if err != nil {
		return response{}, err
	}
	a := path.answer(request)
	if a.Denial != "" {
		s.o.Refused(r.URL.Path, request, a.Denial)
	}
	body, err := encode(request, a)
	return response{body, a.verdict()}, err
}

// take waits for a place.
func take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readReview reads an AdmissionReview of a bearable size.
func readReview(body io.Reader) ([]byte, error) {
	data, err := io.ReadAll(body)
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return nil, bad(http.StatusRequestEntityTooLarge, "the review is longer than %d bytes", long.Limit)
	case err != nil:
		return nil, bad(http.StatusBadRequest, "the review did not arrive: %w", err)
	case bytes.Count(data, comma) > maxValues:
		return nil, bad(http.StatusRequestEntityTooLarge, "the review has more than %d values", maxValues)
	}
	return data, nil
}

var comma = []byte(",")

// decode reads an AdmissionReview's request.
func decode(data []byte) (*admissionv1.AdmissionRequest, error) {
	var review admissionv1.AdmissionReview
	err := json.Unmarshal(data, &review)
	switch want := admissionv1.SchemeGroupVersion.String(); {
	case err != nil:
		return nil, bad(http.StatusBadRequest, "the review can't be decoded: %w", err)
	case review.APIVersion != want || review.Kind != "AdmissionReview":
		return nil, bad(http.StatusBadRequest, "it is a %.64q of %.64q, not an AdmissionReview of %s", review.Kind, review.APIVersion, want)
	case review.Request == nil:
		return nil, bad(http.StatusBadRequest, "the AdmissionReview has no request")
	case review.Request.UID == "":
		return nil, bad(http.StatusBadRequest, "the AdmissionReview's request has no uid")
	}
	return review.Request, nil
}

// encode makes the AdmissionReview that answers the request.
func encode(request *admissionv1.AdmissionRequest, a answer) ([]byte, error) {
	out := admissionv1.AdmissionResponse{UID: request.UID, Allowed: a.Denial == "", Warnings: a.Warnings}
	if a.Denial != "" {
		out.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: a.Denial}
	}
	if len(a.patch) > 0 {
		patch, err := json.Marshal(a.patch)
		if err != nil {
			return nil, fmt.Errorf("encode a patch: %w", err)
		}
		kind := admissionv1.PatchTypeJSONPatch
		out.Patch, out.PatchType = patch, &kind
	}
	return json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Response: &out,
	})
}

// nameOf is what the request calls its object. The API server has no name yet for one with a generateName.
func nameOf(r *admissionv1.AdmissionRequest) string {
	var o struct {
		Metadata struct{ Name, GenerateName string }
	}
	json.Unmarshal(r.Object.Raw, &o) //nolint:errcheck // without a name the rest still holds
	return cmp.Or(r.Name, o.Metadata.Name, o.Metadata.GenerateName)
}
