package tinkerloss

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"unsafe"
)

// newRequest is two datums of 2 and 3 tokens with w per token (absent in the second) and n, an int64 of shape [1]. Its memory is
// aligned as a host's is.
func newRequest() []byte {
	words := make([]uint64, 512)
	b := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words))
	put := func(off int, v ...uint32) {
		for i, x := range v {
			binary.LittleEndian.PutUint32(b[off+4*i:], x)
		}
	}
	put(0, magic, abiVersion, uint32(len(b)), 0, 2, 3, 128, 224, 240, 1, 700, 2, 1024, 5, 1280, 2, 1536, 16, 4, 2)
	put(80, 10, 0)
	put(104, 3)
	put(112, 7)
	put(224, 1, 0) // groups
	binary.LittleEndian.PutUint64(b[240:], math.Float64bits(0.25))
	copy(b[256:], "$logprobswn")
	copy(b[700:], "{}")
	put(128, 256, 9, 1, 320, 512, 5)
	put(160, 265, 1, 1, 352, 576, 2)
	put(192, 266, 1, 2, 384, 640, 2)
	put(320, 0, 2, 1, 1, 2, 3, 1, 1)
	put(352, 0, 2, 1, 1, 0, 0, 0, 0)
	put(384, 0, 1, 1, 1, 1, 1, 1, 1)
	for i, x := range []float32{-1, -2, -3, -4, -5} {
		put(512+4*i, math.Float32bits(x))
	}
	put(576, math.Float32bits(0), math.Float32bits(2))
	put(640, 40, 0, 41, 0)
	return b
}

func TestBatch(t *testing.T) {
	b := &Batch{newRequest()}
	if b.Datums() != 2 || b.Elems() != 5 || b.Groups() != 2 || b.BatchDatums() != 4 || b.BatchElems() != 10 || b.BatchGroups() != 3 || b.Step() != 7 || b.EvaluateOnly() {
		t.Error("the header is read wrong")
	}
	if b.Group(0) != 1 || b.Group(1) != 0 || b.Param(0) != 0.25 || string(b.Config()) != "{}" {
		t.Error("groups, parameters or configuration are read wrong")
	}
	w, n := b.Column("w"), b.Column("n")
	if got := b.Float32s(w, 0); len(got) != 2 || got[1] != 2 {
		t.Errorf("w of datum 0 is %v", got)
	}
	if b.Float32s(w, 1) != nil || b.Int64s(w, 0) != nil || b.Float32s(b.Column("v"), 0) != nil {
		t.Error("what is absent is there")
	}
	if got := b.Int64s(n, 1); len(got) != 1 || got[0] != 41 {
		t.Errorf("n of datum 1 is %v", got)
	}
	if p, k := b.Dims(1); p != 3 || k != 1 || b.LogProbs(1)[0] != -3 {
		t.Errorf("datum 1 is %d x %d, %v", p, k, b.LogProbs(1))
	}
	lp := b.LogProbs(0)
	lp[0] = float32(math.Inf(-1)) // its weight is 0
	if s := b.Score(0, b.Float32s(w, 0), []float32{0, 1}); s != -6 {
		t.Errorf("score %v", s)
	}
	b.Spread(0, b.Float32s(w, 0), -0.5)
	if out := b.Out(0); out[0] != 0 || out[1] != 1 || b.Out(1)[0] != 0 {
		t.Errorf("weights %v", out)
	}
	for _, name := range []string{"a:mean", "b:sum", "one too many"} {
		b.Metric(name, 3)
	}
	if n := b.u32(88); n != 2 || string(b.req[1280+64+16:][:5]) != "b:sum" || b.u32(1280+64+8) != 5 {
		t.Errorf("%d metrics", n)
	}
}

func TestCall(t *testing.T) {
	for _, c := range []struct {
		loss   func(*Batch) error
		status int32
		text   string
	}{
		{func(b *Batch) error { b.SetLoss(2); return nil }, 0, ""},
		{func(*Batch) error { return UserDatum(1, "no w") }, 1, "datum 1: no w"},
		{func(*Batch) error { return &Failure{2, "overflow of everything"} }, 2, "overflow of ever"}, // 16 bytes are all there is
		{func(*Batch) error { return errors.New("plain") }, 1, "plain"},
		{nil, 3, ""},
	} {
		Register("{}", c.loss)
		req := newRequest()
		status := call(req)
		b := &Batch{req}
		if got := string(req[1536:][:b.u32(92)]); status != c.status || got != c.text {
			t.Errorf("status %d with %q, wanted %d with %q", status, got, c.status, c.text)
		}
		if loss := math.Float64frombits(binary.LittleEndian.Uint64(req[96:])); c.status == 0 && loss != 2 {
			t.Errorf("loss %v", loss)
		}
	}
	Register("{}", func(*Batch) error { return nil })
	if call(make([]byte, 128)) != 3 || call(nil) != 3 {
		t.Error("a request without head passed")
	}
}

func TestArithmetic(t *testing.T) {
	for _, x := range []float64{-1000, -3, -1e-9, 0, 0.5, 20, 1000} {
		want := math.Log1p(math.Exp(x))
		if x > 100 {
			want = x
		}
		if got := Softplus(x); math.Abs(got-want) > 1e-15*math.Abs(want) {
			t.Errorf("softplus(%v) = %v, wanted %v", x, got, want)
		}
		if got, want := Sigmoid(x), 1/(1+math.Exp(-x)); math.Abs(got-want) > 1e-15*want {
			t.Errorf("sigmoid(%v) = %v, wanted %v", x, got, want)
		}
	}
}
