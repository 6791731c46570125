package socket

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/mesh"
)

// requests reads a connection's requests.
type requests struct {
	limited *io.LimitedReader
	json    *json.Decoder
}

func newRequests(from io.Reader) requests {
	limited := &io.LimitedReader{R: from}
	return requests{limited, json.NewDecoder(limited)}
}

// errNoMore says that the peer has sent no further request.
var errNoMore = errors.New("no request")

// next reads one valid request. The error is errNoMore if not a byte of one came, for whatever reason.
func (q requests) next() (agentapi.Request, error) {
	q.limited.N = agentapi.MaxLine + 1
	var r agentapi.Request
	err := q.json.Decode(&r)
	switch {
	case q.limited.N <= 0:
		return agentapi.Request{}, fmt.Errorf("it is longer than %d bytes", agentapi.MaxLine)
	case err == nil:
		return r, check(r)
	}
	_, unread := errors.AsType[*net.OpError](err)
	rest, _ := io.ReadAll(q.json.Buffered())
	if (unread || errors.Is(err, io.EOF)) && len(bytes.TrimSpace(rest)) == 0 {
		err = errNoMore
	}
	return agentapi.Request{}, err
}

// check fails unless the request is valid; nothing of an invalid one gets into a label or a path.
func check(r agentapi.Request) error {
	wants := 0
	for _, wanted := range []bool{r.Lookup != nil, r.Report != nil, r.Ready} {
		if wanted {
			wants++
		}
	}
	switch {
	case wants != 1:
		return errors.New("a request is either a lookup or a report, or asks whether the agent is ready")
	case r.Ready:
		return nil
	case r.Lookup != nil:
		return checkPod(r.Lookup.Namespace, r.Lookup.Name)
	case r.Report.Namespace != "" || r.Report.Name != "": // a container that is no pod has neither
		if err := checkPod(r.Report.Namespace, r.Report.Name); err != nil {
			return err
		}
	}
	if !slices.Contains(attachment.Outcomes, r.Report.Outcome) {
		return fmt.Errorf("outcome %.40q is none of %q", r.Report.Outcome, attachment.Outcomes)
	}
	return nil
}

func checkPod(namespace, name string) error {
	if !mesh.IsName(namespace) || !mesh.IsName(name) {
		return fmt.Errorf("%.300q in %.300q is not a pod's name", name, namespace)
	}
	return nil
}
