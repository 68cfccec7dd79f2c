// Package interchange carries adapters between this engine and other programs: archives as the hosted service gives out, PEFT
// folders, merged models, GGUF files for llama.cpp. An export is planned first, so that its size and what it cannot carry are known before
// anything is written; it is written whole or not at all, and read again and compared before it is in its place.
package interchange

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/lora"
)

// Adapter is the factors of one adapter, read a tensor at a time. The names are the engine's: see [lora.Tensor].
type Adapter struct {
	BaseModel string
	Lora      api.LoraConfig
	Scale     float64          // of B·A·x
	Factors   []api.TensorInfo // F32; without Adam's moments

	read func(ctx context.Context, name string, dst []byte) error
}

// FromCheckpoint is the adapter in a checkpoint of either kind. r must stay open while the adapter is in use.
func FromCheckpoint(r api.CheckpointReader) *Adapter {
	c := r.Checkpoint()
	a := &Adapter{BaseModel: c.BaseModel, Lora: c.Lora, Scale: api.LoraAlpha / float64(c.Lora.Rank), read: r.Read}
	for _, t := range r.Tensors() {
		if !isMoment(t.Name) {
			a.Factors = append(a.Factors, t)
		}
	}
	return a
}

// FromTensors is an adapter on the host. ts may not be changed while the adapter is in use.
func FromTensors(baseModel string, c api.LoraConfig, scale float64, ts []lora.Tensor) *Adapter {
	a := &Adapter{BaseModel: baseModel, Lora: c, Scale: scale}
	values := map[string][]float32{}
	for _, t := range ts {
		values[t.Name] = t.Values
		a.Factors = append(a.Factors, api.TensorInfo{Name: t.Name, DType: "F32", Shape: t.Shape})
	}
	a.read = func(_ context.Context, name string, dst []byte) error {
		for i, v := range values[name] {
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
		}
		return nil
	}
	return a
}

// bytes reads a factor as little-endian float32.
func (a *Adapter) bytes(ctx context.Context, t api.TensorInfo) ([]byte, error) {
	if t.DType != "F32" {
		return nil, api.Errorf(api.Unsupported, "tensor %s is %s, wanted F32", t.Name, t.DType)
	}
	data := make([]byte, 4*length(t))
	return data, a.read(ctx, t.Name, data)
}

// Floats reads a factor.
func (a *Adapter) Floats(ctx context.Context, t api.TensorInfo) ([]float32, error) {
	data, err := a.bytes(ctx, t)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(data)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return out, nil
}

// length is the number of values of a tensor.
func length(t api.TensorInfo) int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

func isMoment(name string) bool {
	return strings.HasPrefix(name, lora.MomentM) || strings.HasPrefix(name, lora.MomentV)
}

// Export is an export that has been planned: everything that can be refused beforehand has been.
type Export struct {
	Format string   // "archive", "peft", "merged", "gguf"
	Bytes  int64    // of its files on the disk
	Notes  []string // what a reader of it should know: what it leaves out, or changes

	// write writes the export to path, whole or not at all, reads it again and compares.
	write func(ctx context.Context, path string, o WriteOptions) error
}

// WriteOptions say how an export is written.
type WriteOptions struct {
	Replace  bool                    // an export of the same kind that is there is replaced
	Progress func(done, total int64) // bytes, of writing and comparing together; may be nil

	disk disk.FS // tests have one that fails
}

// Write writes the export to path: a folder for "peft" and "merged", a file for the others. It returns when the export is on the disk
// under its name, and what was read back from there is what was to be written. After an error the disk is as it was before. It needs the
// adapter's source to be open still.
func (x *Export) Write(ctx context.Context, path string, o WriteOptions) error {
	if path == "" {
		return api.Errorf(api.BadRequest, "export %s: the path is empty", x.Format)
	}
	err := disk.Room(filepath.Dir(path), x.Bytes, disk.Margin)
	if err == nil {
		if o.Progress == nil {
			o.Progress = func(int64, int64) {}
		}
		if o.disk == nil {
			o.disk = disk.System{}
		}
		err = x.write(ctx, path, o)
	}
	if err != nil && ctx.Err() != nil {
		return api.Errorf(api.Cancelled, "export %s to %s: %w", x.Format, path, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("export %s to %s: %w", x.Format, path, err)
	}
	return nil
}
