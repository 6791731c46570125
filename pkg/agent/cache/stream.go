package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// podDecoder decodes a pod's JSON, which it must not keep, into what is kept of the pod. A Status becomes a Status.
type podDecoder func(data []byte) (runtime.Object, error)

// inPlace decodes an object where the reader has it. A json.RawMessage would copy what may be megabytes.
type inPlace struct {
	decode podDecoder
	object runtime.Object
}

// UnmarshalJSON decodes the object.
func (p *inPlace) UnmarshalJSON(data []byte) (err error) {
	p.object, err = p.decode(data)
	return err
}

// listWatchPods lists and watches the pods of all namespaces that the field selector selects. It decodes them one by one as they
// arrive, so it never has the JSON of more than one; heard is called with each. The list has no pages: with them, the API server
// would read the whole cluster's pods from etcd, not this node's from its cache.
func (c *Client) listWatchPods(fields string, decode podDecoder, heard func()) cache.ListerWatcher {
	request := c.requests("/api/v1/pods", fields)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			body, err := request(o).Stream(ctx)
			if err != nil {
				return nil, err
			}
			defer body.Close()
			list, err := readPodList(body, decode)
			if err == nil {
				heard()
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			body, err := request(o).Stream(ctx)
			if err != nil {
				return nil, err
			}
			events := &podEvents{body: body, json: json.NewDecoder(body), decode: decode, heard: heard}
			return watch.NewStreamWatcher(events, apierrors.NewClientErrorReporter(http.StatusInternalServerError, http.MethodGet, "ClientWatchDecoding")), nil
		},
	}
}

// readPodList reads a PodList's JSON.
func readPodList(from io.Reader, decode podDecoder) (*podList, error) {
	d := json.NewDecoder(from)
	if err := readDelim(d, '{'); err != nil {
		return nil, err
	}
	var list podList
	for d.More() {
		field, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("read a list of pods: %w", err)
		}
		switch field {
		case "metadata":
			err = d.Decode(&list.ListMeta)
		case "items":
			list.Items, err = readPods(d, decode)
		default:
			err = d.Decode(&json.RawMessage{})
		}
		if err != nil {
			return nil, fmt.Errorf("read a list of pods: %v: %w", field, err)
		}
	}
	return &list, readDelim(d, '}')
}

func readPods(d *json.Decoder, decode podDecoder) ([]podObject, error) {
	begin, err := d.Token()
	if err != nil || begin == nil { // null, as an empty list may be
		return nil, err
	}
	if begin != json.Delim('[') {
		return nil, fmt.Errorf("%v is no list", begin)
	}
	var pods []podObject
	for d.More() {
		item := inPlace{decode: decode}
		if err := d.Decode(&item); err != nil {
			return nil, err
		}
		p, ok := item.object.(*podObject)
		if !ok {
			return nil, fmt.Errorf("it has a %T", item.object)
		}
		pods = append(pods, *p)
	}
	return pods, readDelim(d, ']')
}

func readDelim(d *json.Decoder, want json.Delim) error {
	got, err := d.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%v is where %v should be", got, want)
	}
	return err
}

// podEvents decodes the events of a watch.
type podEvents struct {
	body   io.Closer
	json   *json.Decoder
	decode podDecoder
	heard  func()
}

// Decode waits for the next event. It does not wrap io.EOF, as its caller compares with ==.
func (e *podEvents) Decode() (watch.EventType, runtime.Object, error) {
	event := struct {
		Type   watch.EventType `json:"type"`
		Object inPlace         `json:"object"`
	}{Object: inPlace{decode: e.decode}}
	err := e.json.Decode(&event)
	if err == nil {
		e.heard()
	}
	return event.Type, event.Object.object, err
}

// Close makes Decode end.
func (e *podEvents) Close() { e.body.Close() }
