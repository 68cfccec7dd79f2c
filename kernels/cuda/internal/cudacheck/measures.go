//go:build cuda && linux && cgo

package main

import (
	"fmt"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"gorgonia.org/cu"
	"tinkerlocal/kernels/cuda/internal/cudrv"
)

func summary(name, unit string, values []float64) measure {
	slices.Sort(values)
	return measure{Name: name, Unit: unit, Median: values[len(values)/2], Least: values[0], Most: values[len(values)-1], Rounds: len(values)}
}

// chain is how many launches a round has: about a decode step of a small model.
const chain = 300

// measureLaunches times four ways to issue the same launches. Each adds x = 1 to y, so y counts the launches that ran.
func measureLaunches(r *report, d *device, k *kernels) {
	const rounds, warmups = 30, 3
	err := func() error {
		ones := make([]float32, threads)
		for i := range ones {
			ones[i] = 1
		}
		x, err := upload(ones)
		if err != nil {
			return err
		}
		defer x.free()
		y, err := upload(make([]float32, threads))
		if err != nil {
			return err
		}
		defer y.free()

		single, batch := &cudrv.Launches{}, &cudrv.Launches{}
		fill := func(l *cudrv.Launches) {
			l.Add(k.saxpy, shape(threads)).Pointer(y.at).Pointer(x.at).Float32(1).Int32(threads)
		}
		fillBatch := func() {
			batch.Reset()
			for range chain {
				fill(batch)
			}
		}
		fillBatch()
		graph, err := cudrv.Capture(d.stream, func() error { return batch.Issue(d.stream) })
		if err != nil {
			return err
		}
		defer graph.Close()
		if err := graph.Upload(d.stream); err != nil {
			return err
		}

		one := uint64(0x3f800000) // float32 1
		ways := []struct {
			name  string
			issue func() error
		}{
			{"cu, one launch a call", func() error {
				for range chain {
					if err := cuLaunch(k.saxpy, threads, d.stream, uint64(y.at), uint64(x.at), one, threads); err != nil {
						return err
					}
				}
				return nil
			}},
			{"packed, one launch a call", func() error {
				for range chain {
					single.Reset()
					fill(single)
					if err := single.Issue(d.stream); err != nil {
						return err
					}
				}
				return nil
			}},
			{"packed, 300 launches a call", func() error {
				fillBatch()
				return batch.Issue(d.stream)
			}},
			{"graph of 300 launches", func() error { return graph.Launch(d.stream) }},
		}
		want := float32(0)
		for _, way := range ways {
			var issued, done []float64
			for i := range rounds + warmups {
				start := time.Now()
				if err := way.issue(); err != nil {
					return fmt.Errorf("%s: %w", way.name, err)
				}
				issue := time.Since(start)
				if err := d.stream.Synchronize(); err != nil {
					return fmt.Errorf("%s: cuStreamSynchronize: %w", way.name, err)
				}
				if i >= warmups {
					issued = append(issued, float64(issue.Nanoseconds())/1e3/chain)
					done = append(done, float64(time.Since(start).Nanoseconds())/1e3/chain)
				}
				want += chain
			}
			r.measure(summary(way.name+": host", "us", issued))
			r.measure(summary(way.name+": until done", "us", done))
		}
		got, err := y.get()
		if err != nil {
			return err
		}
		return same(got, slices.Repeat([]float32{want}, threads))
	}()
	r.check("launches and graph", err, "every launch ran once, in all four ways")
}

// measureContext times what a step does once: lock the thread and make the context current.
func measureContext(r *report, d *device) {
	const calls, rounds = 10000, 11
	var values []float64
	err := func() error {
		for range rounds {
			start := time.Now()
			for range calls {
				runtime.LockOSThread()
				err := cu.SetCurrentContext(d.context)
				runtime.UnlockOSThread()
				if err != nil {
					return fmt.Errorf("cuCtxSetCurrent: %w", err)
				}
			}
			values = append(values, float64(time.Since(start).Nanoseconds())/calls)
		}
		return nil
	}()
	r.check("context per step", err, "set %d times", calls*rounds)
	if err == nil {
		r.measure(summary("LockOSThread, SetCurrentContext", "ns", values))
	}
}

// measureCopies times copies between host and device, with and without pinned memory, and on the device.
func measureCopies(r *report, d *device) {
	const rounds = 5
	r.check("host copies", func() error {
		bytes := int(min(256<<20, r.Device.FreeBytes/3) &^ 0xff)
		at, err := cu.MemAlloc(int64(bytes))
		if err != nil {
			return fmt.Errorf("cuMemAlloc: %w", err)
		}
		defer cu.MemFree(at)
		pinned, err := cudrv.HostAlloc(bytes)
		if err != nil {
			return err
		}
		defer cudrv.HostFree(pinned)
		pageable := make([]byte, bytes)
		for _, host := range []struct {
			name   string
			memory []byte
		}{{"pinned", pinned}, {"pageable", pageable}} {
			to, from, err := copies(d, at, host.memory, rounds)
			if err != nil {
				return fmt.Errorf("%s: %w", host.name, err)
			}
			r.measure(summary(fmt.Sprintf("%s host to device, %d MiB", host.name, bytes>>20), "GB/s", to))
			r.measure(summary(fmt.Sprintf("%s device to host, %d MiB", host.name, bytes>>20), "GB/s", from))
		}
		return nil
	}(), "what went to the device came back")

	r.check("device copies", func() error {
		size := min(4<<30, r.Device.FreeBytes/3) &^ 0xff
		from, err := cu.MemAlloc(size)
		if err != nil {
			return fmt.Errorf("cuMemAlloc: %w", err)
		}
		defer cu.MemFree(from)
		to, err := cu.MemAlloc(size)
		if err != nil {
			return fmt.Errorf("cuMemAlloc: %w", err)
		}
		defer cu.MemFree(to)
		return deviceCopies(r, d, to, from, size)
	}(), "events and clock agree")
}

// copies returns the rates of copies into the device and back, and fails when a byte came back changed.
func copies(d *device, at cu.DevicePtr, host []byte, rounds int) (to, from []float64, err error) {
	p, size := unsafe.Pointer(&host[0]), int64(len(host))
	rate := func(start time.Time) float64 { return float64(size) / float64(time.Since(start).Nanoseconds()) }
	for round := range rounds + 1 { // the first touches the pages
		words := unsafe.Slice((*uint64)(p), size/8)
		for i := range words {
			words[i] = uint64(i)*0x9e3779b97f4a7c15 + uint64(round)
		}
		start := time.Now()
		if err := cu.MemcpyHtoDAsync(at, p, size, d.stream); err != nil {
			return nil, nil, fmt.Errorf("cuMemcpyHtoDAsync: %w", err)
		}
		if err := d.stream.Synchronize(); err != nil {
			return nil, nil, fmt.Errorf("cuStreamSynchronize: %w", err)
		}
		up := rate(start)
		clear(words)
		start = time.Now()
		if err := cu.MemcpyDtoHAsync(p, at, size, d.stream); err != nil {
			return nil, nil, fmt.Errorf("cuMemcpyDtoHAsync: %w", err)
		}
		if err := d.stream.Synchronize(); err != nil {
			return nil, nil, fmt.Errorf("cuStreamSynchronize: %w", err)
		}
		down := rate(start)
		for i, got := range words {
			if want := uint64(i)*0x9e3779b97f4a7c15 + uint64(round); got != want {
				return nil, nil, fmt.Errorf("word %d: got %#x, want %#x", i, got, want)
			}
		}
		if round > 0 {
			to, from = append(to, up), append(from, down)
		}
	}
	return to, from, nil
}

// deviceCopies times copies on the device by events and holds the events to the clock. A copy reads and writes, so
// its bandwidth is twice its rate.
func deviceCopies(r *report, d *device, to, from cu.DevicePtr, size int64) error {
	const rounds = 7
	if err := cu.MemsetD32(from, 0x5eed, size/4); err != nil {
		return fmt.Errorf("cuMemsetD32: %w", err)
	}
	if err := cu.Synchronize(); err != nil { // our stream does not wait for the memset's
		return fmt.Errorf("cuCtxSynchronize: %w", err)
	}
	begin, err := cu.MakeEvent(cu.DefaultEvent)
	if err != nil {
		return fmt.Errorf("cuEventCreate: %w", err)
	}
	defer cu.DestroyEvent(&begin)
	end, err := cu.MakeEvent(cu.DefaultEvent)
	if err != nil {
		return fmt.Errorf("cuEventCreate: %w", err)
	}
	defer cu.DestroyEvent(&end)
	var bandwidth, share []float64
	for round := range rounds + 1 {
		start := time.Now()
		if err := begin.Record(d.stream); err != nil {
			return fmt.Errorf("cuEventRecord: %w", err)
		}
		if err := cu.MemcpyDtoDAsync(to, from, size, d.stream); err != nil {
			return fmt.Errorf("cuMemcpyDtoDAsync: %w", err)
		}
		if err := end.Record(d.stream); err != nil {
			return fmt.Errorf("cuEventRecord: %w", err)
		}
		if err := end.Synchronize(); err != nil {
			return fmt.Errorf("cuEventSynchronize: %w", err)
		}
		clock := float64(time.Since(start).Nanoseconds()) / 1e6
		ms, err := begin.Elapsed(end)
		if err != nil {
			return fmt.Errorf("cuEventElapsedTime: %w", err)
		}
		if ms <= 0 || ms > clock*1.01+0.01 {
			return fmt.Errorf("events say %.3f ms, the clock %.3f ms: want more than nothing and no more than the clock", ms, clock)
		}
		if round > 0 {
			bandwidth = append(bandwidth, 2*float64(size)/ms/1e6)
			share = append(share, ms/clock)
		}
	}
	var last uint32
	if err := cu.MemcpyDtoH(unsafe.Pointer(&last), to+cu.DevicePtr(size-4), 4); err != nil {
		return fmt.Errorf("cuMemcpyDtoH: %w", err)
	}
	if last != 0x5eed {
		return fmt.Errorf("the last word of the copy is %#x, want 0x5eed", last)
	}
	r.measure(summary(fmt.Sprintf("device to device, %.1f GB, read and written", float64(size)/1e9), "GB/s", bandwidth))
	r.measure(summary("events, share of the clock", "", share))
	return nil
}
