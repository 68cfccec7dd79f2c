package interchange

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/model"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
)

var (
	mergedLayers = flag.Int("merged_layers", 2, "layers of BenchmarkMerged's model; 20 are 1.9 GB")
	mergedRank   = flag.Int("merged_rank", 32, "rank of BenchmarkMerged's adapter")
)

// bigBase writes a random bfloat16 model with the widths of a Llama of 1 billion parameters, and makes an adapter of all its modules.
func bigBase(b testing.TB, layers, rank, vocab int) (string, *Adapter) {
	b.Helper()
	dir := b.TempDir()
	config := fmt.Sprintf(`{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": %d,
  "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": %d, "hidden_act": "silu", "max_position_embeddings": 2048,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16"}`, layers, vocab)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	c, err := hf.ParseConfig([]byte(config))
	if err != nil {
		b.Fatal(err)
	}
	spec, err := model.NewSpec(c)
	if err != nil {
		b.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 1<<22)
	for i := 0; i < len(noise); i += 2 {
		binary.LittleEndian.PutUint16(noise[i:], kernels.F32ToBF16(float32(random.NormFloat64()*0.02)))
	}
	var sources []hf.Source
	add := func(name string, shape ...int) {
		sources = append(sources, hf.Source{Name: name, Stored: "BF16", Shape: shape, Write: func(w io.Writer) error {
			n := 2
			for _, d := range shape {
				n *= d
			}
			for n > 0 {
				k, err := w.Write(noise[:min(n, len(noise))])
				if n -= k; err != nil {
					return err
				}
			}
			return nil
		}})
	}
	add("model.embed_tokens.weight", vocab, 2048)
	add("model.norm.weight", 2048)
	var ts []lora.Tensor
	factor := func(name string, rows, cols int) {
		v := make([]float32, rows*cols)
		for i := range v {
			v[i] = float32(random.NormFloat64() * 0.02)
		}
		ts = append(ts, lora.Tensor{Name: name, Shape: []int{rows, cols}, Values: v})
	}
	for _, s := range spec.Sites() {
		for _, p := range s.Parts {
			add(p.Module+".weight", p.Out, s.In)
			factor(p.Module+".lora_A.weight", rank, s.In)
			factor(p.Module+".lora_B.weight", p.Out, rank)
		}
	}
	for l := range layers {
		add(fmt.Sprintf("model.layers.%d.input_layernorm.weight", l), 2048)
		add(fmt.Sprintf("model.layers.%d.post_attention_layernorm.weight", l), 2048)
	}
	f, err := os.Create(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := hf.WriteSafetensors(f, sources, nil); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return dir, FromTensors("big", api.LoraConfig{Rank: rank, TrainAttn: true, TrainMLP: true, TrainUnembed: true}, api.LoraAlpha/float64(rank), ts)
}

// BenchmarkMerged merges into a model of two layers (20 with -merged_layers 20), written, synced and compared; with a plain, synced copy of the base
// right before each export, to compare with.
func BenchmarkMerged(b *testing.B) {
	dir, a := bigBase(b, *mergedLayers, *mergedRank, 32000)
	dev, err := cpu.Open(cpu.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	for _, c := range []struct {
		name string
		o    MergedOptions
	}{{"go", MergedOptions{}}, {"device", MergedOptions{Device: dev}}, {"f32", MergedOptions{DType: kernels.F32}}} {
		b.Run(c.name, func(b *testing.B) {
			base := openBase(b, dir)
			x, err := PlanMerged(context.Background(), a, base, c.o)
			if err != nil {
				b.Fatal(err)
			}
			var copying, exporting, writing time.Duration
			for b.Loop() {
				begin := time.Now()
				copySynced(b, dir, filepath.Join(b.TempDir(), "copy"))
				copying += time.Since(begin)
				begin = time.Now()
				if err := x.Write(context.Background(), filepath.Join(b.TempDir(), "merged"), WriteOptions{Progress: func(done, total int64) {
					if done <= x.Bytes {
						writing = max(writing, time.Since(begin))
					}
				}}); err != nil {
					b.Fatal(err)
				}
				exporting += time.Since(begin)
			}
			n := float64(b.N)
			b.ReportMetric(float64(x.Bytes)*n/exporting.Seconds()/1e9, "GB/s")
			b.ReportMetric(writing.Seconds(), "s/writing")
			b.ReportMetric(exporting.Seconds()/n, "s/export")
			b.ReportMetric(copying.Seconds()/n, "s/copy")
			b.ReportMetric(exporting.Seconds()/copying.Seconds(), "copies")
		})
	}
}

// copySynced copies a folder's files, as cp and sync do.
func copySynced(b *testing.B, from, to string) {
	b.Helper()
	if err := os.Mkdir(to, 0o700); err != nil {
		b.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		src, err := os.Open(filepath.Join(from, e.Name()))
		if err != nil {
			b.Fatal(err)
		}
		dst, err := os.Create(filepath.Join(to, e.Name()))
		if err == nil {
			_, err = io.Copy(dst, src)
		}
		if err == nil {
			err = dst.Sync()
		}
		if err != nil {
			b.Fatal(err)
		}
		src.Close()
		dst.Close()
	}
}
