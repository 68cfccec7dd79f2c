package plugins

import (
	"context"
	"testing"
	"time"

	"tinkerlocal/engine/loss"
)

// FuzzModule: whatever the bytes are, Check ends in time, in a report or an error; what it accepts can be called.
func FuzzModule(f *testing.F) {
	for _, g := range []*guest{crossEntropy(), dpo()} {
		f.Add(g.build())
	}
	for _, x := range behaviours {
		g := hostileGuest()
		g.call = join(x.code(g), ic(0))
		f.Add(g.build())
	}
	for seed := range uint64(5) {
		f.Add(randomProgram(seed))
	}
	h, err := Open(context.Background(), Options{Limits: Limits{FuelBase: 1e6, FuelPerElement: 100, MemoryPages: 64}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { h.Close() })
	f.Fuzz(func(t *testing.T, binary []byte) {
		start := time.Now()
		r, err := h.Check(context.Background(), binary)
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("took %v: %v", took, err)
		}
		if err != nil {
			return
		}
		if r.Meta.Name == "" || r.Functions < 4 {
			t.Fatalf("accepted %+v", r)
		}
		m, err := h.Load(context.Background(), binary)
		if err != nil {
			t.Fatalf("checked, but not loaded: %v", err)
		}
		defer m.Close()
		b, err := m.madeUp(8, 20, true)
		if err != nil {
			t.Fatal(err)
		}
		m.Loss().Eval(context.Background(), loss.Input{Data: b.Data, LogProbs: b.LogProbs, Config: b.Config})
	})
}
