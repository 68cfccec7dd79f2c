package cpu

import (
	"testing"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/kerneltest"
)

func opener(o Options) func(t *testing.T) kernels.Device {
	return func(t *testing.T) kernels.Device {
		t.Helper()
		d, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func eachVariant(t *testing.T, f func(t *testing.T, variant string)) {
	for _, v := range Variants() {
		t.Run(v, func(t *testing.T) { f(t, v) })
	}
}

func TestConformance(t *testing.T) {
	eachVariant(t, func(t *testing.T, v string) { kerneltest.Run(t, opener(Options{Variant: v, Threads: 2})) })
}

func TestThreads(t *testing.T) {
	eachVariant(t, func(t *testing.T, v string) {
		kerneltest.Invariance(t, opener(Options{Variant: v, Threads: 1}), opener(Options{Variant: v, Threads: 2}), opener(Options{Variant: v, Threads: 3}))
	})
}

func TestAllocs(t *testing.T) {
	eachVariant(t, func(t *testing.T, v string) { kerneltest.Allocs(t, opener(Options{Variant: v, Threads: 2})) })
}
