package plugins

import (
	"context"
	"fmt"
	"testing"

	"tinkerlocal/engine/loss"
)

// BenchmarkDPO evaluates preference pairs of 500-token datums, copies included, on one instance at a time: the hand-assembled vector code of guests_test.go.
func BenchmarkDPO(b *testing.B) {
	h := openHost(b, Options{})
	m := load(b, h, dpo().build())
	for _, tokens := range []int{2, 1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(tokens), func(b *testing.B) {
			made := must(m.madeUp(max(2, tokens/500), min(499, tokens/2), true))
			in := loss.Input{Data: made.Data, LogProbs: made.LogProbs, Config: made.Config}
			n := 0
			for _, lp := range in.LogProbs {
				n += len(lp)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.eval(context.Background(), in, evalOptions{workers: 1}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/logprob")
		})
	}
}

// BenchmarkCompile compiles and tries a small module.
func BenchmarkCompile(b *testing.B) {
	binary := dpo().build()
	h := openHost(b, Options{})
	for b.Loop() {
		must(h.Load(context.Background(), binary)).Close()
	}
}
