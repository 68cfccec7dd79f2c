package kernels_test

import (
	"testing"

	"tinkerlocal/kernels"
)

// block is memory that only has a size.
type block int64

func (b *block) Len() int64 { return int64(*b) }

// shape is a weight that only has a shape.
type shape struct {
	rows, cols int
	parts      []int
}

func (s *shape) Rows() int            { return s.rows }
func (s *shape) Cols() int            { return s.cols }
func (s *shape) Parts() []int         { return s.parts }
func (s *shape) Bytes() int64         { return 0 }
func (s *shape) Store() kernels.DType { return kernels.F32 }
func (s *shape) Free()                {}

func f64(dims ...int) kernels.Tensor { return of(kernels.F64, dims...) }

func of(d kernels.DType, dims ...int) kernels.Tensor {
	t := kernels.View(nil, 0, d, dims...)
	b := block(t.Bytes())
	t.Buf = &b
	return t
}

func TestCheckMessages(t *testing.T) {
	w := &shape{6, 8, []int{4, 2}}
	good := kernels.LinearArgs{X: f64(5, 8), Y: f64(5, 6), W: w}
	lora := &kernels.LoRA{Rank: 2, A: f64(4, 8), B: f64(6, 2)}
	linear := func(spoil func(a *kernels.LinearArgs)) error {
		a := good
		spoil(&a)
		return a.Check(kernels.F64)
	}
	far := f64(5, 8)
	far.Off = 8
	for _, c := range []struct {
		want string
		err  error
	}{
		{"", good.Check(kernels.F64)},
		{"linear: x is float64[5 7], wanted [* 8]", linear(func(a *kernels.LinearArgs) { a.X = f64(5, 7) })},
		{"linear: y is float64[4 6], wanted [5 6]", linear(func(a *kernels.LinearArgs) { a.Y = f64(4, 6) })},
		{"linear: x is int32[5 8], wanted float64[* 8]", linear(func(a *kernels.LinearArgs) { a.X = of(kernels.I32, 5, 8) })},
		{"linear: x is missing or freed", linear(func(a *kernels.LinearArgs) { a.X = kernels.Tensor{} })},
		{"linear: weight is missing or freed", linear(func(a *kernels.LinearArgs) { a.W = nil })},
		{"linear: x is float64[5 8] (320 bytes) at byte 8, wanted an aligned place inside its buffer of 320 bytes", linear(func(a *kernels.LinearArgs) { a.X = far })},
		{"linear: v is missing or freed", linear(func(a *kernels.LinearArgs) { a.Spans = []kernels.Span{{End: 5, LoRA: lora}} })},
		{"linear: v is float64[5 3], wanted [5 4]", linear(func(a *kernels.LinearArgs) {
			a.Spans, a.V = []kernels.Span{{End: 5, LoRA: lora}}, f64(5, 3)
		})},
		{"linear: span 1: begin is 2, wanted 3..4", linear(func(a *kernels.LinearArgs) { a.Spans = []kernels.Span{{End: 3}, {Begin: 2, End: 5}} })},
		{"linear: lora b is float64[6 3], wanted [6 2] (span 0)", linear(func(a *kernels.LinearArgs) {
			a.Spans = []kernels.Span{{End: 5, LoRA: &kernels.LoRA{Rank: 2, A: f64(4, 8), B: f64(6, 3)}}}
		})},
		{"embed: ids[3] is 999, wanted 0..319", kernels.RangeError("embed", "ids", 3, 999, 0, 319)},
		{"upload: float64[2 3] holds 48 bytes, got 47", kernels.CheckUpload("upload", f64(2, 3), 47)},
		{"pack: store is float16, wanted float32 or bfloat16", kernels.CheckPack([]kernels.Matrix{{}}, kernels.F16)},
		{"pack: part 0 is float32[2 3] and holds 23 bytes, wanted 24", kernels.CheckPack([]kernels.Matrix{{Rows: 2, Cols: 3, DType: kernels.F32, Data: make([]byte, 23)}}, kernels.F32)},
	} {
		got := ""
		if c.err != nil {
			got = c.err.Error()
		}
		if got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

// TestExpertMessages: the checks of a mixture of experts name what is wrong.
func TestExpertMessages(t *testing.T) {
	up, down := &shape{10, 8, []int{5, 5}}, &shape{8, 5, []int{8}}
	i32 := func(dims ...int) kernels.Tensor { return of(kernels.I32, dims...) }
	routing := kernels.Routing{IDs: i32(4, 2), Gate: f64(4, 2), Prob: f64(4, 3), Rows: i32(4, 2), Slots: i32(8), Begin: i32(4)}
	good := kernels.ExpertsArgs{Routing: routing, Y: f64(4, 8), X: f64(4, 8), GU: f64(8, 10), H: f64(8, 5),
		W: &kernels.Experts{GateUp: []kernels.Weight{up, up, up}, Down: []kernels.Weight{down, down, down}}}
	experts := func(spoil func(a *kernels.ExpertsArgs)) error {
		a := good
		spoil(&a)
		return a.Check(kernels.F64)
	}
	upLoRA := &kernels.LoRA{Rank: 2, A: f64(4, 8), B: f64(30, 2)}
	downLoRA := &kernels.LoRA{Rank: 2, A: f64(6, 5), B: f64(8, 2)}
	span := func(l *kernels.LoRA) []kernels.Span { return []kernels.Span{{End: 4, LoRA: l}} }
	for _, c := range []struct {
		want string
		err  error
	}{
		{"", good.Check(kernels.F64)},
		{"", experts(func(a *kernels.ExpertsArgs) {
			a.Up, a.Down, a.V, a.VSum, a.Lows = span(upLoRA), span(downLoRA), f64(4, 4), f64(4, 2), f64(8, 2)
		})},
		{"experts: gu is float64[8 9], wanted [8 10]", experts(func(a *kernels.ExpertsArgs) { a.GU = f64(8, 9) })},
		{"experts: columns of ids is 4, wanted at most the experts", experts(func(a *kernels.ExpertsArgs) { a.IDs = i32(4, 4) })},
		{"experts: begin is int32[3], wanted [4]", experts(func(a *kernels.ExpertsArgs) { a.Begin = i32(3) })},
		{"experts: a weight of the experts is missing or freed", experts(func(a *kernels.ExpertsArgs) { a.W = &kernels.Experts{} })},
		{"experts: the weights of expert 1 are [8 5] of parts [8] and [8 5], wanted [10 8] of two equal parts and [8 5]", experts(func(a *kernels.ExpertsArgs) {
			a.W = &kernels.Experts{GateUp: []kernels.Weight{up, down, up}, Down: good.W.Down}
		})},
		{"experts: v is missing or freed", experts(func(a *kernels.ExpertsArgs) { a.Up = span(upLoRA) })},
		{"experts: up b is float64[30 2], wanted [30 3] (span 0)", experts(func(a *kernels.ExpertsArgs) {
			a.Up = span(&kernels.LoRA{Rank: 3, A: f64(6, 8), B: f64(30, 2)})
		})},
		{"experts: down a is float64[2 5], wanted [6 5] (span 0)", experts(func(a *kernels.ExpertsArgs) {
			a.Down = span(&kernels.LoRA{Rank: 2, A: f64(2, 5), B: f64(8, 2)})
		})},
	} {
		got := ""
		if c.err != nil {
			got = c.err.Error()
		}
		if got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func TestChecksDoNotAllocate(t *testing.T) {
	w := &shape{6, 8, []int{4, 2}}
	lora := &kernels.LoRA{Rank: 2, A: f64(4, 8), B: f64(6, 2), DA: f64(4, 8), DB: f64(6, 2)}
	spans := []kernels.Span{{End: 2, LoRA: lora}, {Begin: 2, End: 5}}
	x, y, v := f64(5, 8), f64(5, 6), f64(5, 4)
	q, k, seqs := f64(5, 8), f64(5, 4), []kernels.Seq{{End: 5}}
	n := testing.AllocsPerRun(10, func() {
		a := kernels.LinearArgs{Y: y, V: v, X: x, W: w, Spans: spans}
		b := kernels.LinearBackwardArgs{DX: x, DV: v, DY: y, V: v, X: x, W: w, Spans: spans}
		c := kernels.AttentionArgs{O: q, Q: q, K: k, V: k, Seqs: seqs, Heads: 2, KVHeads: 1}
		for _, err := range [3]error{a.Check(kernels.F64), b.Check(kernels.F64), c.Check(kernels.F64)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations, wanted none", n)
	}
}
