package plugins

import (
	"context"
	"log/slog"
	"math"
	"testing"

	"tinkerlocal/engine/loss"
)

func openHost(t testing.TB, o Options) *Host {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func load(t testing.TB, h *Host, binary []byte) *Module {
	t.Helper()
	m, err := h.Load(context.Background(), binary)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCrossEntropy(t *testing.T) {
	m := load(t, openHost(t, Options{}), crossEntropy().build())
	t.Logf("%+v", m.Report())
	b, err := m.madeUp(7, 11, true)
	if err != nil {
		t.Fatal(err)
	}
	in := loss.Input{Data: b.Data, LogProbs: b.LogProbs}
	out, err := m.Loss().Eval(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	native, _ := loss.Builtin("cross_entropy")
	want, err := native.Eval(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	if !sameBits(out.Weights, want.Weights) {
		t.Errorf("weights differ from the built-in loss's")
	}
	if got := out.Metrics["loss:sum"]; math.Abs(got-want.Metrics["loss:sum"]) > 1e-12*math.Abs(got) {
		t.Errorf("loss %v, built in %v", got, want.Metrics["loss:sum"])
	}
	if _, ok := m.Loss().(loss.PerDatum); ok {
		t.Errorf("a module would run on the device's goroutine")
	}
	t.Log(out.Metrics)
}

func TestDPO(t *testing.T) {
	h := openHost(t, Options{})
	r, err := h.Check(context.Background(), dpo().build())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.Error > 1e-3 || len(r.Warnings) > 0 {
		t.Errorf("gradient error %v, warnings %v", r.Error, r.Warnings)
	}
}
