package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// BenchmarkDoor reports what a call costs through the Go API and through the C interface, in nanoseconds. The figures are the
// least of several rounds, on whatever else this machine does; docs/c.md has some.
func BenchmarkDoor(b *testing.B) {
	exe := compile(b, "testdata/bench.c", "-O2")
	goDoor := measureGo(b)
	out := run(b, nil, nil, exe)
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var name string
		var ns float64
		if _, err := fmt.Sscan(line, &name, &ns); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(ns, name+"-C-ns")
		if g, ok := goDoor[name]; ok {
			b.ReportMetric(g, name+"-Go-ns")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// measureGo does what testdata/bench.c does, through the Go API.
func measureGo(b *testing.B) map[string]float64 {
	ctx := context.Background()
	e, err := local.Open(ctx, local.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	s := e.NewSession()
	var runs [2]*engine.Run
	for i := range runs {
		c := api.DefaultLora()
		c.Rank = 1
		f, err := s.NewRun(api.CreateModelRequest{BaseModel: local.TinyModel, Lora: c})
		if err == nil {
			runs[i], err = f.Wait(ctx)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	run, closed := runs[0], runs[1]
	closed.Close()
	data := func(datums, tokens int) (out []api.Datum) {
		for range datums {
			ids, targets, weights := make([]int32, tokens), make([]int64, tokens), make([]float32, tokens)
			for k := range ids {
				ids[k], targets[k], weights[k] = int32(k%250), int64(k%250), 1
			}
			out = append(out, api.Datum{ModelInput: api.FromInts(ids), LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(weights)}})
		}
		return out
	}
	done, err := run.OptimStep(api.DefaultAdam())
	if err == nil {
		_, err = done.Wait(ctx)
	}
	if err != nil {
		b.Fatal(err)
	}
	out := map[string]float64{}
	measure := func(name string, times int, do func()) {
		best := time.Hour
		for range 9 {
			begin := time.Now()
			for range times {
				do()
			}
			best = min(best, time.Since(begin)/time.Duration(times))
		}
		out[name] = float64(best.Nanoseconds())
	}
	pass := func(data []api.Datum) func() {
		return func() {
			if _, err := closed.ForwardBackward(api.ForwardBackwardInput{Data: data, LossFn: "cross_entropy"}); api.CodeOf(err) != api.Closed {
				b.Fatal(err)
			}
		}
	}
	measure("wait", 20000, func() { _, _ = done.Wait(ctx) })
	measure("pass-8", 5000, pass(data(1, 8)))
	measure("pass-16384", 50, pass(data(16, 1024)))
	measure("step", 200, func() {
		f, err := run.OptimStep(api.DefaultAdam())
		if err == nil {
			_, err = f.Wait(ctx)
		}
		if err != nil {
			b.Fatal(err)
		}
	})
	return out
}
