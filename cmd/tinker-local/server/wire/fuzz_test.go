package wire

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"tinkerlocal/engine/api"
)

// FuzzProtobuf: hostile bytes are refused with an error for the client, or give a batch that keeps its promises; both
// within the memory that the package comment allows.
func FuzzProtobuf(f *testing.F) {
	for _, cases := range goldens(f) {
		for _, g := range cases {
			if g.ContentType == Protobuf && g.Encoding == "" {
				f.Add(g.Base64)
			}
		}
	}
	for _, c := range hostile() {
		if len(c.body) < 4096 {
			f.Add(c.body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var r ForwardBackwardRequest
		var err error
		size := allocated(func() { r, err = DecodeForwardBackward(body) })
		if limit := allowance(len(body)) + 1<<20; size > limit {
			t.Errorf("%d bytes took %d, wanted at most %d", len(body), size, limit)
		}
		checkDecoded(t, r, err)
		spoiled := bytes.Clone(body)
		again, _ := DecodeForwardBackward(spoiled)
		clear(spoiled)
		if !reflect.DeepEqual(again, r) {
			t.Error("the result points into the body, or changes from time to time")
		}
	})
}

// FuzzJSON: the same for every body in JSON.
func FuzzJSON(f *testing.F) {
	routes := []string{"forward_backward"}
	for route := range views {
		routes = append(routes, route)
	}
	slices.Sort(routes)
	for _, cases := range goldens(f) {
		for _, g := range cases {
			if g.ContentType == JSON {
				f.Add(byte(max(0, slices.Index(routes, g.Route))), []byte(g.Text))
			}
		}
	}
	f.Fuzz(func(t *testing.T, route byte, body []byte) {
		name := routes[int(route)%len(routes)]
		if name == "forward_backward" {
			r, err := DecodeForwardBackwardJSON(body)
			checkDecoded(t, r, err)
			return
		}
		v := views[name]
		r := v.request()
		if err := DecodeRequest(body, r); err != nil {
			checkCode(t, err)
			return
		}
		v.view(r) // conversions of what was accepted do not panic
	})
}

// FuzzBody: nothing that unpacks makes more than its limit.
func FuzzBody(f *testing.F) {
	f.Add(compressed(f, []byte("text")))
	f.Add(bomb(f, 1<<20))
	f.Fuzz(func(t *testing.T, body []byte) {
		const limit = 10000
		out, err := ReadBody(bytes.NewReader(body), "zstd", limit, nil)
		if err != nil {
			checkCode(t, err)
		} else if len(out) > limit {
			t.Errorf("%d bytes", len(out))
		}
	})
}

func checkCode(t *testing.T, err error) {
	t.Helper()
	if code := api.CodeOf(err); code != api.BadRequest && code != api.Unsupported {
		t.Errorf("%v has the code %s", err, code)
	}
}

// checkDecoded holds a batch to what the engine may take for granted.
func checkDecoded(t *testing.T, r ForwardBackwardRequest, err error) {
	t.Helper()
	if err != nil {
		checkCode(t, err)
		return
	}
	if r.ModelID == "" || r.Input.LossFn == "" || r.SeqID < 0 || len(r.Input.Data) == 0 {
		t.Errorf("%+v is accepted", r)
	}
	for i, d := range r.Input.Data {
		if _, err := d.ModelInput.Tokens(); err != nil {
			t.Errorf("datum %d: %v", i, err)
		}
		for name, x := range d.LossInputs {
			if err := checkTensor(x); err != nil || finite(x.Floats) != nil || (x.Floats == nil) == (x.Ints == nil) {
				t.Errorf("datum %d: %s: %v (%v)", i, name, x, err)
			}
		}
	}
}
