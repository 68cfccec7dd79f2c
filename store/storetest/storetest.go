// Package storetest is the suite that every api.Store must pass.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

// Clock is the clock that a store under test is to use. It can be set to any time.
type Clock struct{ T time.Time }

// Now is the time that was set.
func (c *Clock) Now() time.Time { return c.T }

// Maker opens an empty store that uses clock. reopen closes it and opens it again with what it holds; it is nil for stores that
// forget. collect makes the store give back what nobody needs, and waits for it.
type Maker func(t *testing.T, clock *Clock) (s api.Store, reopen func() api.Store, collect func())

var ctx = context.Background()

// Run runs the suite. soak makes the random tests longer.
func Run(t *testing.T, open Maker, soak bool) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, b *bench)
	}{
		{"save and load", saveAndLoad},
		{"tensors of every type", tensorTypes},
		{"user metadata", metadata},
		{"refusals", refusals},
		{"overwrite", overwrite},
		{"abort", abort},
		{"keep last", keepLast},
		{"expiry", expiry},
		{"publish", publish},
		{"delete", remove},
		{"two parts", twoParts},
		{"lists", lists},
		{"runs", runs},
		{"reader outlives its record", readerOutlives},
		{"shared chunks", sharedChunks},
		{"close", closed},
		{"concurrent", concurrent},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newBench(t, open)) })
	}
	steps := 300
	if soak {
		steps = 5000
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("random operations %d", seed), func(t *testing.T) { Random(t, open, seed, steps) })
	}
}

// bench is a store with its clock.
type bench struct {
	api.Store
	t       *testing.T
	clock   *Clock
	reopen  func() api.Store
	collect func()
}

func newBench(t *testing.T, open Maker) *bench {
	b := &bench{t: t, clock: &Clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}}
	var reopen func() api.Store
	b.Store, reopen, b.collect = open(t, b.clock)
	b.reopen = func() api.Store {
		if reopen != nil {
			b.Store = reopen()
		}
		return b.Store
	}
	return b
}

// Blob is a tensor with its content.
type Blob struct {
	api.TensorInfo
	Data []byte
}

// Floats makes a float32 tensor of n values that depend on seed; large ones take several chunks.
func Floats(name string, n int, seed uint64) Blob {
	rng := rand.New(rand.NewPCG(seed, 99))
	data := make([]byte, 4*n)
	for i := 0; i < len(data); i += 4 {
		v := rng.Uint32()
		data[i], data[i+1], data[i+2], data[i+3] = byte(v), byte(v>>8), byte(v>>16)&0x7f, 0x3d // about 0.06
	}
	return Blob{api.TensorInfo{Name: name, DType: "F32", Shape: []int{n}}, data}
}

// Describe is what a test knows of a checkpoint before it is saved.
func Describe(path string, blobs []Blob) api.Checkpoint {
	p, err := api.ParsePath(path)
	if err != nil {
		panic(err)
	}
	seed := int64(7)
	c := api.Checkpoint{
		Path: p, Owner: "ann", BaseModel: "org/Base-1B", Step: 3, Version: 4, Optimizer: p.Kind == api.KindState,
		Lora:    api.LoraConfig{Rank: 8, Seed: &seed, TrainMLP: true},
		Plugins: []api.PluginRecord{{Name: "dpo", Version: "1.0.0", Digest: "00ff", ABI: "1.0", Config: map[string]float64{"beta": 0.1}}},
	}
	for _, b := range blobs {
		c.Bytes += int64(len(b.Data))
	}
	return c
}

// Save saves a checkpoint.
func Save(s api.Store, path string, o api.SaveOptions, blobs ...Blob) (api.Checkpoint, error) {
	return SaveAs(s, Describe(path, blobs), o, blobs...)
}

// SaveAs saves a checkpoint with a description of the caller's.
func SaveAs(s api.Store, c api.Checkpoint, o api.SaveOptions, blobs ...Blob) (api.Checkpoint, error) {
	w, err := s.Create(ctx, c, o)
	if err != nil {
		return api.Checkpoint{}, err
	}
	defer w.Abort()
	for _, b := range blobs {
		if err := w.Tensor(ctx, b.TensorInfo, b.Data); err != nil {
			return api.Checkpoint{}, err
		}
	}
	return w.Commit(ctx)
}

// Load reads a checkpoint and all its tensors.
func Load(s api.Store, path string) (api.Checkpoint, []Blob, error) {
	p, err := api.ParsePath(path)
	if err != nil {
		return api.Checkpoint{}, nil, err
	}
	r, err := s.Open(ctx, p)
	if err != nil {
		return api.Checkpoint{}, nil, err
	}
	defer r.Close()
	var blobs []Blob
	for _, t := range r.Tensors() {
		var data bytes.Buffer
		if err := r.Stream(ctx, t.Name, &data); err != nil {
			return api.Checkpoint{}, nil, err
		}
		direct := make([]byte, data.Len())
		if err := r.Read(ctx, t.Name, direct); err != nil {
			return api.Checkpoint{}, nil, err
		}
		if !bytes.Equal(direct, data.Bytes()) {
			return api.Checkpoint{}, nil, fmt.Errorf("tensor %s: Read and Stream differ", t.Name)
		}
		blobs = append(blobs, Blob{t, direct})
	}
	return r.Checkpoint(), blobs, nil
}

// Equal says how two lists of tensors differ, "" when they do not.
func Equal(got, want []Blob) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d tensors, wanted %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.Name != w.Name || g.DType != w.DType || !slices.Equal(g.Shape, w.Shape) {
			return fmt.Sprintf("tensor %d is %v, wanted %v", i, g.TensorInfo, w.TensorInfo)
		}
		if !bytes.Equal(g.Data, w.Data) {
			return fmt.Sprintf("tensor %s has other bytes", g.Name)
		}
	}
	return ""
}

func (b *bench) save(path string, blobs ...Blob) api.Checkpoint {
	b.t.Helper()
	return b.saveWith(path, api.SaveOptions{}, blobs...)
}

func (b *bench) saveWith(path string, o api.SaveOptions, blobs ...Blob) api.Checkpoint {
	b.t.Helper()
	c, err := Save(b, path, o, blobs...)
	if err != nil {
		b.t.Fatalf("save %s: %v", path, err)
	}
	return c
}

func (b *bench) has(path string, blobs ...Blob) {
	b.t.Helper()
	_, got, err := Load(b, path)
	if err != nil {
		b.t.Errorf("load %s: %v", path, err)
	} else if diff := Equal(got, blobs); diff != "" {
		b.t.Errorf("load %s: %s", path, diff)
	}
}

// lacks wants a path not to be there for any method.
func (b *bench) lacks(path string) {
	b.t.Helper()
	p := parse(path)
	_, _, err := Load(b, path)
	b.code(err, api.NotFound, "")
	_, err = b.Info(ctx, p)
	b.code(err, api.NotFound, "")
	b.code(b.SetTTL(ctx, p, time.Hour), api.NotFound, "")
	b.code(b.Publish(ctx, p), api.NotFound, "")
	b.code(b.Delete(ctx, p), api.NotFound, "")
	if slices.Contains(b.list(api.CheckpointQuery{}), path) {
		b.t.Errorf("%s is listed", path)
	}
}

// code wants an error with a code and a part of its message.
func (b *bench) code(err error, code api.Code, part string) {
	b.t.Helper()
	if err == nil || api.CodeOf(err) != code || !strings.Contains(err.Error(), part) {
		b.t.Errorf("got error %v (%s), wanted %s (%s)", err, api.CodeOf(err), part, code)
	}
}

func (b *bench) list(q api.CheckpointQuery) []string {
	b.t.Helper()
	page, err := b.List(ctx, q)
	if err != nil {
		b.t.Errorf("list: %v", err)
	}
	var out []string
	for _, c := range page.Checkpoints {
		out = append(out, c.Path.String())
	}
	return out
}

func parse(path string) api.Path {
	p, err := api.ParsePath(path)
	if err != nil {
		panic(err)
	}
	return p
}

var errStop = errors.New("stop")

// failing fails after some bytes.
type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errStop
	}
	return len(p), nil
}

var _ io.Writer = (*failing)(nil)
