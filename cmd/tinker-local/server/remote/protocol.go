package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tinkerlocal/engine/api"
)

// Protocol is the version of what the two ends say to each other. It changes with every change that the other end must know of,
// also of the types of package api.
const Protocol = 1

// The headers. A tensor's error comes in a trailer, once the tensor has begun.
const (
	keyHeader      = "X-API-Key"
	protocolHeader = "Tinker-Local-Protocol"
	errorTrailer   = "Tinker-Local-Error"
)

// maxCall bounds the JSON of one request.
const maxCall = 16 << 20

// hello begins the answer that is a session.
type hello struct {
	Session string `json:"session"`
}

// The requests and answers. Paths and queries are api's own.
type (
	pathCall struct {
		Path api.Path      `json:"path"`
		TTL  time.Duration `json:"ttl,omitempty"`
	}
	runCall struct {
		ID string `json:"id"`
	}
	pathsCall struct {
		Paths []api.Path `json:"paths"`
	}
	createCall struct {
		Checkpoint api.Checkpoint  `json:"checkpoint"`
		Options    api.SaveOptions `json:"options"`
	}
	created struct {
		Writer string `json:"writer"`
	}
	opened struct {
		Reader     string           `json:"reader"`
		Checkpoint api.Checkpoint   `json:"checkpoint"`
		Tensors    []api.TensorInfo `json:"tensors"`
	}
	nothing struct{}
)

// tensorQuery puts a tensor into a query, where every byte of its name survives.
func tensorQuery(t api.TensorInfo) url.Values {
	sizes := make([]string, len(t.Shape))
	for i, n := range t.Shape {
		sizes[i] = strconv.Itoa(n)
	}
	return url.Values{"name": {t.Name}, "dtype": {t.DType}, "shape": {strings.Join(sizes, ",")}}
}

func parseTensor(q url.Values) (api.TensorInfo, error) {
	t := api.TensorInfo{Name: q.Get("name"), DType: q.Get("dtype"), Shape: []int{}}
	for size := range strings.SplitSeq(q.Get("shape"), ",") {
		if size == "" {
			continue
		}
		n, err := strconv.Atoi(size)
		if err != nil {
			return t, api.Errorf(api.BadRequest, "tensor %q: shape: %w", t.Name, err)
		}
		t.Shape = append(t.Shape, n)
	}
	return t, nil
}

// statusOf is for logs and for people: the asking end reads the body.
func statusOf(c api.Code) int {
	switch c {
	case api.NotFound:
		return http.StatusNotFound
	case api.Closed:
		return http.StatusServiceUnavailable
	case api.Internal, api.DataLoss:
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// errorJSON is what becomes of an error on its way.
func errorJSON(err error) []byte {
	b, bad := json.Marshal(api.Error{Code: api.CodeOf(err), Msg: err.Error()})
	if bad != nil {
		panic(bad) // two strings
	}
	return b
}

// parseError is the error at the other end.
func parseError(status string, b []byte) error {
	e := &api.Error{}
	if err := json.Unmarshal(b, e); err != nil || e.Code == "" {
		return api.Errorf(api.Internal, "the server answered %s: %.200q", status, b)
	}
	return e
}

func readJSON(r io.Reader, limit int64, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return err
	case int64(len(b)) > limit:
		return api.Errorf(api.BadRequest, "the message has more than %d bytes", limit)
	}
	err = json.Unmarshal(b, v)
	var known *api.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known): // a path, say
		return api.Errorf(known.Code, "%w", err)
	}
	return api.Errorf(api.BadRequest, "the message cannot be read: %w", err)
}

// mismatch says that the two ends are of different versions, or is nil.
func mismatch(theirs string) error {
	if theirs == strconv.Itoa(Protocol) {
		return nil
	}
	return api.Errorf(api.Unsupported, "the two programs do not speak the same version of the store's protocol: %s and %d; use the server's program for commands beside it, or stop the server",
		fmt.Sprintf("%.20q", theirs), Protocol)
}
