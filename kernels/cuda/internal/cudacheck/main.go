//go:build cuda && linux && cgo

package main

import (
	_ "embed"
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"

	"gorgonia.org/cu"
	"tinkerlocal/kernels/cuda/internal/cudrv"
)

//go:embed kernels.ptx
var kernelText []byte

func main() {
	var images []string
	file := flag.String("json", "", "write the report here and lines for people to the standard output")
	seconds := flag.Int("seconds", 50, "end after so long, whatever is going on")
	flag.Func("image", "kernel image that the driver must accept; may be repeated", func(name string) error {
		images = append(images, name)
		return nil
	})
	flag.Parse()
	r := &report{file: *file, started: time.Now(), Checks: []check{}, Measures: []measure{}}
	time.AfterFunc(time.Duration(*seconds)*time.Second, func() { r.end(fmt.Sprintf("still running after %d s", *seconds)) })

	runtime.LockOSThread() // contexts belong to threads
	r.end(examine(r, images))
}

// examine does everything in order. It returns why it could not go on, or "".
func examine(r *report, images []string) string {
	driver, err := cudrv.Open()
	if err != nil {
		return err.Error()
	}
	r.Driver = &driverInfo{Library: driver.Library, CUDAVersion: cu.Version(), Resolved: driver.Resolved, Missing: append([]string{}, driver.Missing...)}
	var lacking error
	if len(driver.Missing) > 0 {
		lacking = fmt.Errorf("%s lacks %v", driver.Library, driver.Missing)
	}
	r.check("driver functions", lacking, "%d found in %s, CUDA %d", driver.Resolved, driver.Library, r.Driver.CUDAVersion)

	d, err := openDevice(r)
	if err != nil {
		return err.Error()
	}
	checkImages(r, images)
	k, err := loadKernels()
	r.check("PTX", err, "%d bytes compiled by the driver", len(kernelText))
	if err != nil {
		return "the kernels cannot be loaded: nothing to launch"
	}
	checkAdd(r, k)
	checkSaxpy(r, k)
	checkSharedMemory(r, d, k)
	measureLaunches(r, d, k)
	measureContext(r, d)
	measureCopies(r, d)
	checkFaults(r, d, k) // last: the context does not survive it
	return ""
}

// device is the first one, its primary context current on this thread, and a stream.
type device struct {
	id      cu.Device
	context cu.CUContext
	stream  cu.Stream
}

func openDevice(r *report) (*device, error) {
	count, err := cu.NumDevices()
	if err != nil {
		return nil, fmt.Errorf("cuDeviceGetCount: %w", err)
	}
	if count == 0 {
		return nil, fmt.Errorf("the driver names no device")
	}
	id, err := cu.GetDevice(0)
	if err != nil {
		return nil, fmt.Errorf("cuDeviceGet: %w", err)
	}
	d := &device{id: id}
	info := &deviceInfo{Count: count, Attributes: map[string]int{}}
	r.Device = info
	if info.Name, err = id.Name(); err != nil {
		return nil, fmt.Errorf("cuDeviceGetName: %w", err)
	}
	for name, attribute := range map[string]cu.DeviceAttribute{
		"capability_major": cu.ComputeCapabilityMajor, "capability_minor": cu.ComputeCapabilityMinor,
		"multiprocessors": cu.MultiprocessorCount, "warp": cu.WarpSize, "l2_bytes": cu.L2CacheSize,
		"shared_per_block": cu.MaxSharedMemoryPerBlock, "shared_per_multiprocessor": cu.MaxSharedMemoryPerMultiprocessor,
		"registers_per_multiprocessor": cu.MaxRegistersPerMultiprocessor, "threads_per_multiprocessor": cu.MaxThreadsPerMultiprocessor,
		"clock_khz": cu.ClockRate, "memory_clock_khz": cu.MemoryClockRate, "memory_bus_bits": cu.GlobalMemoryBusWidth,
		"copy_engines": cu.AsyncEngineCount, "ecc": cu.EccEnabled,
	} {
		if info.Attributes[name], err = id.Attribute(attribute); err != nil {
			r.check("attribute "+name, err, "")
		}
	}
	if info.Attributes["shared_per_block_optin"], err = cudrv.SharedOptIn(id); err != nil {
		return nil, err
	}
	info.Capability = fmt.Sprintf("%d.%d", info.Attributes["capability_major"], info.Attributes["capability_minor"])
	if d.context, err = id.RetainPrimaryCtx(); err != nil {
		return nil, fmt.Errorf("cuDevicePrimaryCtxRetain: %w", err)
	}
	if err = cu.SetCurrentContext(d.context); err != nil {
		return nil, fmt.Errorf("cuCtxSetCurrent: %w", err)
	}
	if info.FreeBytes, info.MemoryBytes, err = cu.MemInfo(); err != nil {
		return nil, fmt.Errorf("cuMemGetInfo: %w", err)
	}
	if d.stream, err = cu.MakeStream(cu.NonBlocking); err != nil {
		return nil, fmt.Errorf("cuStreamCreate: %w", err)
	}
	r.check("device", nil, "%s, %s, %d multiprocessors, %.1f of %.1f GB free", info.Name, info.Capability,
		info.Attributes["multiprocessors"], float64(info.FreeBytes)/1e9, float64(info.MemoryBytes)/1e9)
	return d, nil
}

// checkImages loads kernel images from files, for instance cubins from other compilers.
func checkImages(r *report, images []string) {
	for _, name := range images {
		data, err := os.ReadFile(name)
		if err == nil {
			var m cu.Module
			if m, err = cudrv.LoadImage(data); err == nil {
				err = m.Unload()
			}
		}
		r.check("image "+name, err, "%d bytes accepted", len(data))
	}
}
