package store

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/store/storetest"
)

// full makes the benchmarks use a state of the size that rank 32 has on Qwen3-8B: 1.1 GB, of which up to three are on
// the disk of the temporary folder at a time. Otherwise it is a thirtieth of that.
var full = flag.Bool("full", false, "benchmark with a state of 1.1 GB")

// state8B are the factors and moments of an adapter on Qwen3-8B: values with the spread that training gives.
func state8B() (blobs []storetest.Blob, bytes int64) {
	rank := 1
	if *full {
		rank = 32
	}
	rng := rand.New(rand.NewPCG(1, 2))
	add := func(name string, sigma float64, square bool, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]byte, 4*n)
		for i := 0; i < len(data); i += 4 {
			v := rng.NormFloat64() * sigma
			if square {
				v *= v
			}
			binary.LittleEndian.PutUint32(data[i:], math.Float32bits(float32(v)))
		}
		bytes += int64(len(data))
		blobs = append(blobs, storetest.Blob{TensorInfo: api.TensorInfo{Name: name, DType: "F32", Shape: shape}, Data: data})
	}
	module := func(name string, in, out int) {
		for _, f := range []struct {
			name  string
			shape []int
		}{{".lora_A.weight", []int{rank, in}}, {".lora_B.weight", []int{out, rank}}} {
			add(name+f.name, 0.01, false, f.shape...)
			add("adam_m/"+name+f.name, 1e-4, false, f.shape...)
			add("adam_v/"+name+f.name, 1e-4, true, f.shape...)
		}
	}
	const hidden, ffn, vocab = 4096, 12288, 151936
	for l := range 36 {
		at := fmt.Sprintf("model.layers.%d.", l)
		module(at+"self_attn.q_proj", hidden, 4096)
		module(at+"self_attn.k_proj", hidden, 1024)
		module(at+"self_attn.v_proj", hidden, 1024)
		module(at+"self_attn.o_proj", 4096, hidden)
		module(at+"mlp.gate_proj", hidden, ffn)
		module(at+"mlp.up_proj", hidden, ffn)
		module(at+"mlp.down_proj", ffn, hidden)
	}
	module("lm_head", hidden, vocab)
	return blobs, bytes
}

// BenchmarkState saves and loads a whole training state: in the store, and as a plain safetensors file that is synced.
func BenchmarkState(b *testing.B) {
	blobs, bytes := state8B()
	b.Run("save/store", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			b.StopTimer()
			dir := b.TempDir()
			s := reopen(b, dir, quiet(nil))
			b.StartTimer()
			c, err := storetest.Save(s, pathA, api.SaveOptions{}, blobs...)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(c.Written)/float64(bytes), "stored/raw")
			s.Close()
			os.RemoveAll(dir)
			b.StartTimer()
		}
	})
	b.Run("save/store again", func(b *testing.B) {
		s := reopen(b, b.TempDir(), quiet(nil))
		if _, err := storetest.Save(s, pathA, api.SaveOptions{}, blobs...); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(bytes)
		for b.Loop() {
			if _, err := storetest.Save(s, pathB, api.SaveOptions{Overwrite: true}, blobs...); err != nil {
				b.Fatal(err)
			}
		}
	})
	file := filepath.Join(b.TempDir(), "state.safetensors")
	b.Run("save/safetensors", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			if err := writePlain(file, blobs); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load/store", func(b *testing.B) {
		s := reopen(b, b.TempDir(), quiet(nil))
		if _, err := storetest.Save(s, pathA, api.SaveOptions{}, blobs...); err != nil {
			b.Fatal(err)
		}
		p, _ := api.ParsePath(pathA)
		b.SetBytes(bytes)
		for b.Loop() {
			r, err := s.Open(context.Background(), p)
			if err != nil {
				b.Fatal(err)
			}
			for _, x := range blobs {
				if err := r.Read(ctx, x.Name, make([]byte, len(x.Data))); err != nil {
					b.Fatal(err)
				}
			}
			r.Close()
		}
	})
	b.Run("load/safetensors", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			if _, err := os.ReadFile(file); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func writePlain(name string, blobs []storetest.Blob) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var sources []hf.Source
	for _, x := range blobs {
		sources = append(sources, hf.Source{Name: x.Name, Stored: x.DType, Shape: x.Shape, Write: func(w io.Writer) error {
			_, err := w.Write(x.Data)
			return err
		}})
	}
	if err := hf.WriteSafetensors(f, sources, nil); err != nil {
		return err
	}
	return f.Sync()
}
