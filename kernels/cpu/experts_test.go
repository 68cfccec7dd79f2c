package cpu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"testing"

	"tinkerlocal/kernels"
)

// expertsBench is a routed block and a dense feed-forward of the same work per token, both with adapters of rank 16.
type expertsBench struct {
	*rig
	t, d, f, experts, top int

	route kernels.RouteArgs
	block kernels.ExpertsArgs
	back  kernels.ExpertsBackwardArgs
	up    kernels.LinearArgs
	down  kernels.LinearArgs
	act   [4]kernels.Tensor // gu, h, dgu, dh of the dense one
	upB   kernels.LinearBackwardArgs
	downB kernels.LinearBackwardArgs
}

const benchRank = 16

func (b *expertsBench) lora(ar, ac, br int) []kernels.Span {
	return []kernels.Span{{End: b.t, LoRA: &kernels.LoRA{Rank: benchRank, Scale: 2, A: b.tensor(ar, ac), B: b.tensor(br, benchRank),
		DA: b.tensor(ar, ac), DB: b.tensor(br, benchRank)}}}
}

func newExpertsBench(r *rig, t, d, f, experts, top int, store kernels.DType) *expertsBench {
	b := &expertsBench{rig: r, t: t, d: d, f: f, experts: experts, top: top}
	s, R := t*top, benchRank
	grid := func(rows, cols int) kernels.Tensor { return b.ints(rows*cols, 1).Reshape(rows, cols) }
	routing := kernels.Routing{IDs: grid(t, top), Gate: b.tensor(t, top), Prob: b.tensor(t, experts), Rows: grid(t, top), Slots: b.ints(s, 1), Begin: b.ints(experts+1, 1)}
	b.route = kernels.RouteArgs{Routing: routing, X: b.tensor(t, d), W: b.weight(store, d, experts), Normalize: true}
	w := &kernels.Experts{}
	for range experts {
		w.GateUp, w.Down = append(w.GateUp, b.weight(store, d, f, f)), append(w.Down, b.weight(store, f, d))
	}
	b.block = kernels.ExpertsArgs{Routing: routing, Y: b.tensor(t, d), X: b.route.X, Res: b.tensor(t, d), GU: b.tensor(s, 2*f), V: b.tensor(t, 2*R),
		VSum: b.tensor(t, R), H: b.tensor(s, f), Lows: b.tensor(s, 2*R), W: w, Up: b.lora(2*R, d, 2*experts*f), Down: b.lora(experts*R, f, d)}
	b.back = kernels.ExpertsBackwardArgs{Routing: routing, DX: b.tensor(t, d), DGate: b.tensor(t, top), DY: b.tensor(t, d), X: b.route.X, GU: b.block.GU,
		V: b.block.V, VSum: b.block.VSum, H: b.block.H, DH: b.tensor(s, f), DGU: b.tensor(s, 2*f), Low: b.tensor(t, 2*R), Lows: b.block.Lows, W: w,
		Up: b.block.Up, Down: b.block.Down}
	wide := top * f
	b.act = [4]kernels.Tensor{b.tensor(t, 2*wide), b.tensor(t, wide), b.tensor(t, 2*wide), b.tensor(t, wide)}
	b.up = kernels.LinearArgs{Y: b.act[0], V: b.tensor(t, 2*R), X: b.route.X, W: b.weight(store, d, wide, wide), Spans: b.lora(2*R, d, 2*wide)}
	b.down = kernels.LinearArgs{Y: b.tensor(t, d), V: b.tensor(t, R), X: b.act[1], W: b.weight(store, wide, d), Spans: b.lora(R, wide, d), Res: b.block.Res}
	b.upB = kernels.LinearBackwardArgs{DX: b.tensor(t, d), DV: b.tensor(t, 2*R), DY: b.act[2], V: b.up.V, X: b.up.X, W: b.up.W, Spans: b.up.Spans}
	b.downB = kernels.LinearBackwardArgs{DX: b.act[3], DV: b.tensor(t, R), DY: b.back.DY, V: b.down.V, X: b.act[1], W: b.down.W, Spans: b.down.Spans}
	return b
}

func (b *expertsBench) dense() error {
	if err := b.ops.Linear(b.up); err != nil {
		return err
	}
	if err := b.ops.SwiGLU(b.act[1], b.act[0]); err != nil {
		return err
	}
	return b.ops.Linear(b.down)
}

func (b *expertsBench) denseBack() error {
	if err := b.ops.LinearBackward(b.downB); err != nil {
		return err
	}
	if err := b.ops.SwiGLUBackward(b.act[2], b.act[3], b.act[0]); err != nil {
		return err
	}
	return b.ops.LinearBackward(b.upB)
}

// BenchmarkExperts sets the experts beside a dense feed-forward with as many multiplications per token. It counts the base products:
// 3 forward, 3 backward.
func BenchmarkExperts(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, s := range []struct{ t, d, f, experts, top int }{{1, 1024, 384, 32, 4}, {16, 1024, 384, 32, 4}, {1024, 1024, 384, 32, 4}, {1024, 512, 96, 64, 8}} {
			clock := newBench(b, threads)
			r := newExpertsBench(clock.rig, s.t, s.d, s.f, s.experts, s.top, kernels.BF16)
			if err := r.ops.Route(r.route); err != nil {
				b.Fatal(err)
			}
			work := 2 * 3 * float64(s.t) * float64(s.top*s.f) * float64(s.d)
			for _, c := range []struct {
				name string
				call func() error
			}{
				{"route", func() error { return r.ops.Route(r.route) }},
				{"experts", func() error { return r.ops.Experts(r.block) }},
				{"dense", r.dense},
				{"experts back", func() error { return r.ops.ExpertsBackward(r.back) }},
				{"dense back", r.denseBack},
			} {
				b.Run(fmt.Sprintf("t%d/T=%d/D=%d/F=%d/E=%d/top=%d/%s", threads, s.t, s.d, s.f, s.experts, s.top, c.name), func(b *testing.B) {
					clock.b = b
					clock.gflops(work, c.call)
				})
			}
		}
	}
}

// TestPortableExperts pins the portable variant's bits of a routed block, as TestPortableBits does for the rest.
func TestPortableExperts(t *testing.T) {
	const want = "1c31bc0d5b6b9446"
	for _, threads := range []int{1, 3} {
		d, err := Open(Options{Variant: "portable", Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b := newExpertsBench(newRig(t, d), 37, 40, 21, 7, 3, kernels.BF16)
		for _, err := range []error{b.ops.Route(b.route), b.ops.Experts(b.block), b.ops.ExpertsBackward(b.back),
			b.ops.RouteBackward(kernels.RouteBackwardArgs{Routing: b.route.Routing, DX: b.back.DX, DGate: b.back.DGate, W: b.route.W})} {
			if err != nil {
				t.Fatal(err)
			}
		}
		up, down := b.block.Up[0].LoRA, b.block.Down[0].LoRA
		sum := sha256.New()
		for _, x := range []kernels.Tensor{b.block.Y, b.back.DX, b.back.DGate, b.route.Prob, up.DA, up.DB, down.DA, down.DB} {
			for _, v := range floats(x) {
				fmt.Fprintf(sum, "%08x", math.Float32bits(v))
			}
		}
		if got := hex.EncodeToString(sum.Sum(nil))[:16]; got != want {
			t.Errorf("%d threads: bits %s, wanted %s", threads, got, want)
		}
	}
}
