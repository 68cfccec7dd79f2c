//go:build cuda && linux && cgo

package main

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unsafe"

	"gorgonia.org/cu"
	"tinkerlocal/kernels/cuda/internal/cudrv"
)

// kernels are the functions of kernels.ptx.
type kernels struct{ add, saxpy cu.Function }

func loadKernels() (*kernels, error) {
	module, err := cudrv.LoadImage(kernelText)
	if err != nil {
		return nil, err
	}
	k := &kernels{}
	if k.add, err = module.Function("add"); err != nil {
		return nil, fmt.Errorf("cuModuleGetFunction(add): %w", err)
	}
	if k.saxpy, err = module.Function("saxpy"); err != nil {
		return nil, fmt.Errorf("cuModuleGetFunction(saxpy): %w", err)
	}
	return k, nil
}

// vector is n floats on the device.
type vector struct {
	at cu.DevicePtr
	n  int
}

func upload(values []float32) (vector, error) {
	at, err := cu.MemAlloc(int64(len(values) * 4))
	if err != nil {
		return vector{}, fmt.Errorf("cuMemAlloc: %w", err)
	}
	v := vector{at, len(values)}
	return v, v.set(values)
}

func (v vector) set(values []float32) error {
	if err := cu.MemcpyHtoD(v.at, unsafe.Pointer(&values[0]), int64(len(values)*4)); err != nil {
		return fmt.Errorf("cuMemcpyHtoD: %w", err)
	}
	// The copy may return before the last bytes have landed, and streams like ours do not wait for it.
	if err := cu.Synchronize(); err != nil {
		return fmt.Errorf("cuCtxSynchronize: %w", err)
	}
	return nil
}

func (v vector) get() ([]float32, error) {
	values := make([]float32, v.n)
	if err := cu.MemcpyDtoH(unsafe.Pointer(&values[0]), v.at, int64(v.n*4)); err != nil {
		return nil, fmt.Errorf("cuMemcpyDtoH: %w", err)
	}
	return values, nil
}

func (v vector) free() { cu.MemFree(v.at) }

// pattern gives values of every sign and many sizes, the same for equal seeds.
func pattern(n int, seed uint32) []float32 {
	out := make([]float32, n)
	for i := range out {
		seed = seed*1664525 + 1013904223
		out[i] = float32(int32(seed)) / float32(int64(1)<<(20+seed>>28))
	}
	return out
}

// threads is the block size of every launch here, and shape covers n elements with it.
const threads = 256

func shape(n int) cudrv.Shape {
	return cudrv.Shape{Grid: [3]uint32{uint32((n + threads - 1) / threads), 1, 1}, Block: [3]uint32{threads, 1, 1}}
}

// cuLaunch launches through cu, which reads eight bytes for each parameter.
func cuLaunch(f cu.Function, n int, s cu.Stream, params ...uint64) error {
	pointers := make([]unsafe.Pointer, len(params))
	for i := range params {
		pointers[i] = unsafe.Pointer(&params[i])
	}
	return f.Launch((n+threads-1)/threads, 1, 1, threads, 1, 1, 0, s, pointers)
}

// same compares bits and names the first element that differs.
func same(got, want []float32) error {
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			return fmt.Errorf("element %d of %d: got %v, want %v", i, len(want), got[i], want[i])
		}
	}
	return nil
}

// odd is a count that no block size divides.
const odd = 1<<20 + 77

// checkAdd runs the whole way through cu alone: memory, copies, launch.
func checkAdd(r *report, k *kernels) {
	a, b := pattern(odd, 1), pattern(odd, 2)
	want := make([]float32, odd)
	for i := range want {
		want[i] = a[i] + b[i]
	}
	r.check("add through cu", func() error {
		da, err := upload(a)
		if err != nil {
			return err
		}
		defer da.free()
		db, err := upload(b)
		if err != nil {
			return err
		}
		defer db.free()
		out, err := upload(make([]float32, odd))
		if err != nil {
			return err
		}
		defer out.free()
		if err := cuLaunch(k.add, odd, cu.NoStream, uint64(out.at), uint64(da.at), uint64(db.at), odd); err != nil {
			return fmt.Errorf("cuLaunchKernel: %w", err)
		}
		if err := cu.Synchronize(); err != nil {
			return fmt.Errorf("cuCtxSynchronize: %w", err)
		}
		got, err := out.get()
		if err != nil {
			return err
		}
		return same(got, want)
	}(), "%d sums equal the CPU's bit for bit", odd)
}

// checkSaxpy launches with a packed block of parameters.
func checkSaxpy(r *report, k *kernels) {
	const scale = 0.7
	x, y := pattern(odd, 3), pattern(odd, 4)
	want := make([]float32, odd)
	for i := range want {
		// The product of two float32 is exact in float64; its sum is rounded twice, which differs from one rounding in
		// about one of 2^28 elements. The pattern has none of those: the check would name it.
		want[i] = float32(math.FMA(float64(float32(scale)), float64(x[i]), float64(y[i])))
	}
	r.check("saxpy, packed parameters", func() error {
		dx, err := upload(x)
		if err != nil {
			return err
		}
		defer dx.free()
		dy, err := upload(y)
		if err != nil {
			return err
		}
		defer dy.free()
		var l cudrv.Launches
		l.Add(k.saxpy, shape(odd)).Pointer(dy.at).Pointer(dx.at).Float32(scale).Int32(odd)
		if err := l.Issue(cu.NoStream); err != nil {
			return err
		}
		if err := cu.Synchronize(); err != nil {
			return fmt.Errorf("cuCtxSynchronize: %w", err)
		}
		got, err := dy.get()
		if err != nil {
			return err
		}
		return same(got, want)
	}(), "%d elements equal the CPU's bit for bit", odd)
}

// checkSharedMemory asks for all the shared memory that a block may have, which cu cannot do.
func checkSharedMemory(r *report, d *device, k *kernels) {
	bytes := r.Device.Attributes["shared_per_block_optin"]
	r.check("largest shared memory", func() error {
		if err := cudrv.AllowShared(k.saxpy, bytes); err != nil {
			return err
		}
		v, err := upload([]float32{1})
		if err != nil {
			return err
		}
		defer v.free()
		s := shape(1)
		s.Shared = uint32(bytes)
		var l cudrv.Launches
		l.Add(k.saxpy, s).Pointer(v.at).Pointer(v.at).Float32(2).Int32(1)
		if err := l.Issue(d.stream); err != nil {
			return err
		}
		if err := d.stream.Synchronize(); err != nil {
			return fmt.Errorf("cuStreamSynchronize: %w", err)
		}
		got, err := v.get()
		if err != nil {
			return err
		}
		return same(got, []float32{3})
	}(), "a block ran with %d bytes", bytes)
}

// checkFaults makes calls that must fail, and fail as errors.
func checkFaults(r *report, d *device, k *kernels) {
	r.check("bad PTX", func() error {
		_, err := cudrv.LoadImage([]byte(".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry broken() { wrong.f32 %f1; }\n"))
		var failed *cudrv.Error
		if !errors.As(err, &failed) {
			return fmt.Errorf("got %v, want an error of the compiler", err)
		}
		if !strings.Contains(failed.Log, "line") {
			return fmt.Errorf("code %d, log %q: want the log to name a line", failed.Code, failed.Log)
		}
		return nil
	}(), "an error, with the compiler's log")
	r.check("no image at all", wantCode(func() error {
		_, err := cudrv.LoadImage([]byte("neither a cubin nor PTX\n"))
		return err
	}(), 200, 209, 218, 300), "an error")
	r.check("block too large", wantCode(func() error {
		s := shape(1)
		s.Block = [3]uint32{1 << 15, 1, 1}
		var l cudrv.Launches
		l.Add(k.saxpy, s).Pointer(0).Pointer(0).Float32(1).Int32(0)
		return l.Issue(d.stream)
	}(), 1), "an error at once, and the context lives on")
	if err := d.stream.Synchronize(); err != nil {
		r.check("after refused launches", err, "")
		return
	}
	r.check("illegal address", func() error {
		var l cudrv.Launches
		l.Add(k.saxpy, shape(1)).Pointer(16).Pointer(16).Float32(1).Int32(1)
		if err := l.Issue(d.stream); err != nil {
			return fmt.Errorf("at the launch: %w", err)
		}
		if err := d.stream.Synchronize(); err != cu.IllegalAddress {
			return fmt.Errorf("at the wait: got %v, want %v", err, cu.IllegalAddress)
		}
		if err := d.stream.Synchronize(); err == nil {
			return errors.New("the context works again after a fault: want every later call to fail")
		}
		return nil
	}(), "an error at the wait and at every call after it")
}

// wantCode passes an error of the driver with one of the codes.
func wantCode(err error, codes ...int) error {
	var failed *cudrv.Error
	if errors.As(err, &failed) {
		for _, code := range codes {
			if failed.Code == code {
				return nil
			}
		}
	}
	return fmt.Errorf("got %v, want one of the codes %v", err, codes)
}
