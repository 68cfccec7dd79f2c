package plugins

import (
	"math"
	"runtime"
	"time"
)

// Limits bound what plugins may take. A zero field has the default named beside it.
type Limits struct {
	// ModuleBytes is how large a module may be. Default 4 MiB: one written in Go has 2.
	ModuleBytes int

	// MemoryPages is how many pages of 64 KiB an instance may have. Default 4096, 256 MiB.
	MemoryPages int

	// RequestBytes bounds one request. Default 128 MiB: half of the memory, six million log-probabilities with two inputs.
	RequestBytes int

	// FuelBase and FuelPerElement are what a call may execute, in units of about one simple instruction: the sum of the base and of
	// the per-element fuel for each log-probability and datum in it. Defaults 100 million, some 0.1 s, and 4000; a
	// clipped policy loss in Go takes 1500, one in C 150, and the start of a Go program 2 million.
	FuelBase, FuelPerElement int64

	// CallTime and TimePerElement bound a call by the clock: the sum of the first and of the second for each log-probability and datum
	// in it. Defaults 0.15 s and 4 µs, 50 times as long without a compiler. Fuel counts instructions, and one that has to
	// wait for memory takes a hundred times as long as another: this ends what does little but wait. The slowest of the bundled losses takes
	// 0.13 µs for an element, the start of a Go program 2 ms.
	CallTime, TimePerElement time.Duration

	// CompileTime bounds the compilation of one module. Default 30 s.
	CompileTime time.Duration

	// Calls is how many instances may run at a time, over all modules; as many again may run on batches of one small
	// request, which never wait for large ones. Default: the number of CPUs that Go uses. The worst case in memory is twice that many times
	// MemoryPages.
	Calls int

	// Modules is how many may be loaded. Default 64.
	Modules int

	// Weight bounds the size of a weight that a plugin returns. Default 1e6.
	Weight float64
}

func (l Limits) withDefaults(interpreted bool) Limits {
	set := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.ModuleBytes, 4<<20)
	set(&l.MemoryPages, 4096)
	l.MemoryPages = min(l.MemoryPages, 1<<16)
	set(&l.RequestBytes, 128<<20)
	set(&l.Calls, runtime.GOMAXPROCS(0))
	set(&l.Modules, 64)
	if l.FuelBase <= 0 {
		l.FuelBase = 100e6
	}
	if l.FuelPerElement <= 0 {
		l.FuelPerElement = 4000
	}
	slow := time.Duration(1)
	if interpreted {
		slow = 50
	}
	if l.CallTime <= 0 {
		l.CallTime = slow * 150 * time.Millisecond
	}
	if l.TimePerElement <= 0 {
		l.TimePerElement = slow * 4 * time.Microsecond
	}
	if l.CompileTime <= 0 {
		l.CompileTime = 30 * time.Second
	}
	if !(l.Weight > 0) {
		l.Weight = 1e6
	}
	l.Weight = min(l.Weight, math.MaxFloat32)
	return l
}

// allowance is what a call may take that has so many log-probabilities and datums, both together.
func (l *Limits) allowance(n int) allowance {
	return allowance{fuel: l.FuelBase + l.FuelPerElement*int64(n), time: l.CallTime + l.TimePerElement*time.Duration(n)}
}

// Limits that are part of the ABI.
const (
	maxDescribe  = 64 << 10 // bytes of metadata
	maxMetrics   = 64
	maxErrorText = 4096
	maxLogLine   = 1 << 10
	maxLogLines  = 64
	maxLogBytes  = 16 << 10
	maxInputs    = 32
	maxParameter = 64
)

// chunkElements is about how many log-probabilities one request carries when the batch may be cut. Results depend on it in the
// last bits of sums, so it is a constant: with it, inputs and outputs of a chunk stay in a processor's cache.
const chunkElements = 64 << 10
