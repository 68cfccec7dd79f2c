package cpu

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"unsafe"

	"tinkerlocal/kernels"
)

// Options say how to open the device; the zero value is what people want.
type Options struct {
	Threads     int    // host threads, 0 for GOMAXPROCS
	Variant     string // "avx2" or "portable"; "" takes the fastest that the machine has
	MemoryLimit int64  // bytes of buffers and weights, 0 for no limit but the machine's
}

// maxThreads bounds the worker pool; more would only wait for memory.
const maxThreads = 1024

// Device is the CPU device. One goroutine at a time may use it; its workers are its own.
type Device struct {
	variant string
	vec     *vectors
	pool    *pool
	ops     ops
	limit   int64
	used    atomic.Int64
	freed   atomic.Int64 // since memory was last given back to the system
	limbo   int64        // as much of it may stay with the Go runtime; 0: any amount
	closed  bool
}

var _ kernels.Device = (*Device)(nil)

// Variants lists the kernel variants that this machine can run, the fastest first.
func Variants() []string { return append(machineVariants(), "portable") }

// Open starts the device and its workers. Close ends them. It fails when the variant is unknown or the machine lacks it.
func Open(o Options) (*Device, error) {
	if o.Threads < 0 || o.Threads > maxThreads {
		return nil, fmt.Errorf("open cpu: threads is %d, wanted 0..%d", o.Threads, maxThreads)
	}
	if o.MemoryLimit < 0 {
		return nil, fmt.Errorf("open cpu: memory limit is %d bytes, wanted 0 or more", o.MemoryLimit)
	}
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.Variant == "" {
		o.Variant = Variants()[0]
	}
	vec := vectorsOf(o.Variant)
	if vec == nil {
		return nil, fmt.Errorf("open cpu: variant %q, wanted one of %s (what this machine has)", o.Variant, strings.Join(Variants(), ", "))
	}
	d := &Device{variant: o.Variant, vec: vec, limit: o.MemoryLimit}
	total, _ := systemMemory()
	d.limbo = total / 16
	d.pool = newPool(o.Threads, vec)
	d.ops.dev, d.ops.pool, d.ops.vec = d, d.pool, vec
	return d, nil
}

// Info describes the device; Memory and Free are 0 where the system does not tell. Memory that was freed is free: much of it is
// taken from the Go runtime first, which would keep it until its heap has doubled.
func (d *Device) Info() kernels.Info {
	if n := d.freed.Load(); d.limbo > 0 && n > d.limbo {
		d.freed.Add(-n)
		debug.FreeOSMemory()
	}
	total, free := systemMemory()
	if d.limit > 0 {
		left := max(0, d.limit-d.used.Load())
		if total == 0 || d.limit < total {
			total = d.limit
		}
		if free == 0 || left < free {
			free = left
		}
	}
	return kernels.Info{
		Name:    fmt.Sprintf("cpu (%s, %d threads)", d.variant, len(d.pool.workers)),
		Kind:    "cpu",
		Variant: d.variant,
		Act:     kernels.F32,
		Threads: len(d.pool.workers),
		Memory:  total,
		Free:    free,
	}
}

// buffer is host memory that starts on a cache line.
type buffer struct {
	dev  *Device
	data []byte
}

func (b *buffer) Len() int64 { return int64(len(b.data)) }

// reserve counts n bytes, or says why they are not to be had.
func (d *Device) reserve(what string, n int64) error {
	if d.closed {
		return closedError(what)
	}
	if n < 0 {
		return fmt.Errorf("%s: %d bytes wanted", what, n)
	}
	if d.limit > 0 && n > d.limit-d.used.Load() {
		return memoryError(what, n, d.limit-d.used.Load())
	}
	if n > math.MaxInt-cacheLine {
		return memoryError(what, n, 0)
	}
	// A small request is not worth the question; the Go runtime ends the process when memory is out, so a large one is.
	if n > largeBytes {
		total, free := systemMemory()
		if total > 0 && n > free { // what was freed may still be with the runtime
			debug.FreeOSMemory()
			_, free = systemMemory()
		}
		if total > 0 && n > free || total == 0 && n > unknownBytes {
			return memoryError(what, n, free)
		}
	}
	d.used.Add(n)
	return nil
}

const (
	largeBytes   = 1 << 20
	unknownBytes = 1 << 40 // where the system does not tell, a bound against nonsense
)

func memoryError(what string, wanted, free int64) error {
	return fmt.Errorf("%s: wanted %d bytes, free %d: %w", what, wanted, max(0, free), kernels.ErrMemory)
}

// Alloc returns zero-filled memory.
func (d *Device) Alloc(bytes int64) (kernels.Buffer, error) {
	if err := d.reserve("alloc", bytes); err != nil {
		return nil, err
	}
	return &buffer{dev: d, data: aligned(bytes)}, nil
}

// Free gives a buffer back; a buffer of another device is left alone.
func (d *Device) Free(b kernels.Buffer) {
	if b, ok := b.(*buffer); ok && b != nil && b.dev == d && b.data != nil {
		d.used.Add(-int64(len(b.data)))
		d.freed.Add(int64(len(b.data)))
		b.data = nil
	}
}

const cacheLine = 64

// aligned returns n zero bytes that start on a cache line.
func aligned(n int64) []byte {
	if n == 0 {
		return []byte{}
	}
	raw := make([]byte, n+cacheLine)
	skip := int64(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & (cacheLine - 1))
	return raw[skip : skip+n : skip+n]
}

// Upload copies src to dst.
func (d *Device) Upload(dst kernels.Tensor, src []byte) error {
	if err := kernels.CheckUpload("upload", dst, len(src)); err != nil {
		return err
	}
	b, ok := dst.Buf.(*buffer)
	if !ok || b.dev != d {
		return kernels.ForeignError("upload", "tensor")
	}
	copy(b.data[dst.Off:], src)
	if !littleEndian {
		swapBytes(b.data[dst.Off:dst.Off+int64(len(src))], dst.DType.Size())
	}
	return nil
}

// Download copies src to dst. Ops are done when they return, so there is nothing to wait for.
func (d *Device) Download(dst []byte, src kernels.Tensor) error {
	if err := kernels.CheckUpload("download", src, len(dst)); err != nil {
		return err
	}
	b, ok := src.Buf.(*buffer)
	if !ok || b.dev != d {
		return kernels.ForeignError("download", "tensor")
	}
	copy(dst, b.data[src.Off:src.Off+int64(len(dst))])
	if !littleEndian {
		swapBytes(dst, src.DType.Size())
	}
	return nil
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// swapBytes reverses each element: host buffers hold native numbers, the contract's bytes are little endian.
func swapBytes(b []byte, size int) {
	for i := 0; i+size <= len(b); i += size {
		for l, r := i, i+size-1; l < r; l, r = l+1, r-1 {
			b[l], b[r] = b[r], b[l]
		}
	}
}

// Wait reports at once: every op is complete when its call returns.
func (d *Device) Wait(ctx context.Context) error { return ctx.Err() }

// Ops are the device's operations; all of them are complete when they return.
func (d *Device) Ops() kernels.Ops { return &d.ops }

// Close ends the workers. Buffers and weights are then garbage; ops answer with an error.
func (d *Device) Close() error {
	if !d.closed {
		d.closed = true
		d.pool.close()
	}
	return nil
}
