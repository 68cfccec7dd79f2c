package kerneltest

import (
	"fmt"

	"tinkerlocal/kernels"
)

// stream is a list of data that share one adapter, cut into calls in some way. run processes the
// calls one after the other and returns the bits of the adapter's gradients. Gradients are summed
// per datum and added in order, so the cuts must not matter.
type stream struct {
	name string
	run  func(r *rig, calls [][]int) []byte
}

// cuts are ways to cut six data into calls. Without the first, that of one by one, a device could add up a
// call's data before adding them to the gradient.
var cuts = [][][]int{
	{{0}, {1}, {2}, {3}, {4}, {5}},
	{{0, 1, 2, 3, 4, 5}},
	{{0, 1}, {2, 3}, {4, 5}},
	{{0}, {1, 2, 3, 4}, {5}},
	{{0, 1, 2, 3, 4}, {5}},
}

var streamLens = []int{3, 70, 1, 130, 17, 6}

func (s stream) check(dev kernels.Device) error {
	var first []byte
	for _, calls := range cuts {
		var bits []byte
		if err := onRig(dev, 0, func(r *rig) { bits = s.run(r, calls) }); err != nil {
			return err
		}
		if first == nil {
			first = bits
		} else if d := sameBits(first, bits); d != "" {
			return fmt.Errorf("gradients of data in calls %v and %v differ: %s", cuts[0], calls, d)
		}
	}
	return nil
}

func streamChecks() []check {
	var all []check
	for _, s := range []stream{{"linear backward", linearStream}, {"logprobs backward", headStream}} {
		all = append(all, check{"gradients of a stream", s.name, s.check})
	}
	return all
}

func linearStream(r *rig, calls [][]int) []byte {
	const k = 24
	parts := []int{7, 10}
	w := r.pack(newGen(5).weight(kernels.F32, k, false, parts...))
	l := r.adapters([]hostLoRA{newGen(6).lora(5, 2, 17, k)}, true)[0]
	for _, call := range calls {
		var x, dy []host
		var spans []kernels.Span
		at := 0
		for _, i := range call {
			g, n := itemGen(i), streamLens[i]
			x, dy = append(x, g.normal(1, n, k)), append(dy, g.normal(1, n, 17))
			spans = append(spans, kernels.Span{Begin: at, End: at + n, LoRA: l})
			at += n
		}
		a := kernels.LinearArgs{Y: r.out("y", at, 17), V: r.out("v", at, 10), X: r.in("x", stack(x...)), W: w, Spans: spans}
		r.must(r.ops.Linear(a))
		r.must(r.ops.LinearBackward(kernels.LinearBackwardArgs{
			DV: r.scratch("dv", at, 10), DY: r.in("dy", stack(dy...)), V: a.V, X: a.X, W: w, Spans: spans,
		}))
	}
	return append(r.bytesOf(l.DA), r.bytesOf(l.DB)...)
}

func headStream(r *rig, calls [][]int) []byte {
	const d, vocab = 12, 65
	w := r.pack(newGen(5).weight(kernels.F32, d, false, vocab))
	l := r.adapters([]hostLoRA{newGen(6).lora(4, 1, vocab, d)}, true)[0]
	for _, call := range calls {
		var h, target, dout []host
		var spans []kernels.Span
		at := 0
		for _, i := range call {
			g, n := itemGen(i), streamLens[i]
			h, target, dout = append(h, g.normal(1, n, d)), append(target, g.ids(-1, vocab-1, n, 1)), append(dout, g.normal(1, n, 1))
			spans = append(spans, kernels.Span{Begin: at, End: at + n, LoRA: l})
			at += n
		}
		a := kernels.LogProbsArgs{
			Out: r.out("out", at, 1), LSE: r.out("lse", at), V: r.out("v", at, 4), H: r.in("h", stack(h...)), W: w,
			Spans: spans, Target: r.in("target", stack(target...)),
		}
		r.must(r.ops.LogProbs(a))
		r.must(r.ops.LogProbsBackward(kernels.LogProbsBackwardArgs{
			DH: r.out("dh", at, d), DV: r.scratch("dv", at, 4), DOut: r.in("dout", stack(dout...)),
			LSE: a.LSE, V: a.V, H: a.H, W: w, Spans: spans, Target: a.Target,
		}))
	}
	return append(r.bytesOf(l.DA), r.bytesOf(l.DB)...)
}
