package hf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/kernels"
)

var update = flag.Bool("update", false, "rewrite testdata/ours, which WriteAdapter makes")

// golden is what the official library says a tensor holds.
type golden struct {
	Shape  []int
	Bits   []uint32 // of the values as float32
	SHA256 string   // of the values as little-endian float32
}

func (g golden) check(t *testing.T, name string, shape []int, values []float32) {
	t.Helper()
	if !slices.Equal(shape, g.Shape) {
		t.Errorf("%s: shape %v, want %v", name, shape, g.Shape)
	}
	var raw []byte
	for i, v := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		if g.SHA256 == "" && (i >= len(g.Bits) || math.Float32bits(v) != g.Bits[i]) {
			t.Errorf("%s: value %d is %v, not the official one", name, i, v)
		}
	}
	if sum := sha256.Sum256(raw); g.SHA256 != "" && hex.EncodeToString(sum[:]) != g.SHA256 {
		t.Errorf("%s: the values are not the official ones", name)
	}
	if g.SHA256 == "" && len(values) != len(g.Bits) {
		t.Errorf("%s: %d values, want %d", name, len(values), len(g.Bits))
	}
}

func readJSON(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOfficialFile reads what the safetensors library wrote and writes it again: the same bytes.
func TestOfficialFile(t *testing.T) {
	file, err := os.ReadFile("testdata/dtypes.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseSafetensors(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]golden{}
	readJSON(t, "dtypes.json", &want)
	other := map[string]string{"i8": "I8", "u8": "U8", "i64": "I64", "f64": "F64", "bool": "BOOL", "f8": "F8_E4M3"}
	var again []Source
	for _, x := range h.tensors {
		again = append(again, x.Source())
		if stored, ok := other[x.Name]; ok {
			if x.Stored != stored || x.Float32s() != nil {
				t.Errorf("%s is %s, want %s and no floats", x.Name, x.Stored, stored)
			}
			continue
		}
		g, ok := want[x.Name]
		if !ok {
			t.Errorf("tensor %q is not in the file", x.Name)
		}
		g.check(t, x.Name, x.Shape, x.Float32s())
	}
	if len(h.tensors) != len(want)+len(other) {
		t.Errorf("%d tensors, want %d", len(h.tensors), len(want)+len(other))
	}
	if len(h.metadata) != 1 || h.metadata["format"] != "pt" {
		t.Errorf("metadata is %v", h.metadata)
	}
	var out bytes.Buffer
	if err := WriteSafetensors(&out, again, h.metadata); err != nil {
		t.Fatal(err)
	}
	if n, err := SafetensorsSize(again, h.metadata); err != nil || n != int64(out.Len()) {
		t.Errorf("size is %d (%v), %d bytes were written", n, err, out.Len())
	}
	back, err := parseSafetensors(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range h.tensors {
		i := slices.IndexFunc(back.tensors, func(y Tensor) bool { return y.Name == x.Name })
		if i < 0 {
			t.Errorf("%s is lost", x.Name)
		} else if y := back.tensors[i]; y.Stored != x.Stored || !slices.Equal(y.Shape, x.Shape) || !bytes.Equal(y.Data, x.Data) {
			t.Errorf("%s comes back as %s%v", x.Name, y.Stored, y.Shape)
		}
	}
}

// TestShardedCheckpoint reads a folder that transformers wrote, mapped and from memory.
func TestShardedCheckpoint(t *testing.T) {
	want := map[string]golden{}
	readJSON(t, "sharded.json", &want)
	mapped, err := Open("testdata/sharded")
	if err != nil {
		t.Fatal(err)
	}
	memory, err := OpenFS("sharded", os.DirFS("testdata/sharded"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Checkpoint{mapped, memory} {
		names := c.Names()
		if len(names) != 25 || !slices.IsSorted(names) {
			t.Errorf("%s: names %v", c.Name, names)
		}
		files := map[string]bool{}
		for _, name := range names {
			x, ok := c.Tensor(name)
			if !ok || x.Name != name || x.DType != kernels.BF16 || x.Stored != "BF16" || 2*x.Len() != len(x.Data) {
				t.Errorf("%s: tensor %s is %s%v with %d bytes", c.Name, name, x.Stored, x.Shape, len(x.Data))
			}
			files[x.File] = true
		}
		if len(files) != 3 {
			t.Errorf("%s: tensors come from %d files, want 3", c.Name, len(files))
		}
		for name, g := range want {
			x, err := c.Want(name, g.Shape...)
			if err != nil {
				t.Error(err)
				continue
			}
			g.check(t, name, x.Shape, x.Float32s())
			c.Release(name)
			g.check(t, name+" after Release", x.Shape, x.Float32s())
			c.ReleasePart(name, x.Data[:len(x.Data)/2])
			g.check(t, name+" after ReleasePart", x.Shape, x.Float32s())
		}
		c.Release("no such tensor")
		checkQwen3(t, c)
		if b, err := c.File("config.json"); err != nil || !bytes.Equal(b, c.Config.Raw) {
			t.Errorf("File: %v", err)
		}
		if _, err := c.File("tokenizer.json"); api.CodeOf(err) != api.NotFound {
			t.Errorf("File of what is not there: %v", err)
		}
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Want("lm_head.weight", 37, 12); api.CodeOf(err) != api.Closed {
			t.Errorf("Want after Close: %v", err)
		}
		if _, ok := c.Tensor("lm_head.weight"); ok || len(c.Names()) != 0 {
			t.Error("there are tensors after Close")
		}
		c.Release("lm_head.weight")
	}
}

func checkQwen3(t *testing.T, c *Checkpoint) {
	t.Helper()
	f := c.Config
	if f.ModelType != "qwen3" || !slices.Equal(f.Architectures, []string{"Qwen3ForCausalLM"}) || f.HiddenSize != 12 ||
		f.IntermediateSize != 20 || f.NumHiddenLayers != 2 || f.NumAttentionHeads != 4 || f.NumKeyValueHeads != 2 ||
		f.HeadDim != 6 || f.VocabSize != 37 || f.RMSNormEps != 1e-6 || f.RopeTheta != 10000 || f.RopeScaling != nil ||
		f.HiddenAct != "silu" || f.TieWordEmbeddings || !f.HasTieWordEmbeddings || f.AttentionBias || f.MLPBias ||
		f.MaxPositionEmbeddings != 64 || f.SlidingWindow != 0 || f.UseSlidingWindow || len(f.LayerTypes) != 2 ||
		f.TorchDType != "bfloat16" || f.BosTokenID != 1 || !slices.Equal(f.EosTokenIDs, []int{2, 3}) {
		t.Errorf("%s: config is %+v", c.Name, f)
	}
	var version string
	if err := f.Decode("transformers_version", &version); err != nil || version == "" {
		t.Errorf("Decode: %q, %v", version, err)
	}
	if err := f.Decode("no_such_key", &version); api.CodeOf(err) != api.NotFound {
		t.Errorf("Decode of what is not there: %v", err)
	}
	if err := f.Decode("hidden_size", &version); api.CodeOf(err) != api.BadRequest {
		t.Errorf("Decode of a number as a string: %v", err)
	}
	if g := c.Generation; !slices.Equal(g.EosTokenIDs, []int{2, 3}) || g.Temperature != nil || g.DoSample != nil {
		t.Errorf("%s: generation is %+v", c.Name, g)
	}
}

// TestOfficialAdapters reads what peft wrote, and writes and reads it again.
func TestOfficialAdapters(t *testing.T) {
	want := map[string]map[string]golden{}
	readJSON(t, "peft.json", &want)
	all := []string{"down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj"}
	for name, c := range map[string]struct {
		rank, tensors int
		scale         float64
		targets       []string
		base          []string
	}{
		"peft_all": {3, 30, 32.0 / 3, all, []string{"base_model.model.lm_head.base_layer.weight"}},
		"peft_rs":  {4, 8, 5, []string{"q_proj", "v_proj"}, nil},
	} {
		a, err := ReadAdapter(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if a.Rank != c.rank || a.Scale() != c.scale || !slices.Equal(a.Targets, c.targets) || a.BaseModel != "tiny/qwen3" ||
			len(a.Tensors) != c.tensors || len(want[name]) != c.tensors || !slices.Equal(a.BaseLayers, c.base) {
			t.Errorf("%s: rank %d, scale %v, targets %v, base %q, %d tensors, base layers %v",
				name, a.Rank, a.Scale(), a.Targets, a.BaseModel, len(a.Tensors), a.BaseLayers)
		}
		for _, x := range a.Tensors {
			want[name][x.Name].check(t, x.Name, x.Shape, x.Values)
		}
		dir := filepath.Join(t.TempDir(), "again")
		if err := WriteAdapter(dir, a); err != nil {
			t.Fatal(err)
		}
		b, err := ReadAdapter(dir)
		if err != nil {
			t.Fatal(err)
		}
		a.BaseLayers = nil
		sameAdapter(t, name, b, a)
		second := filepath.Join(t.TempDir(), "second")
		if err := WriteAdapter(second, b); err != nil {
			t.Fatal(err)
		}
		sameFolder(t, dir, second)
	}
}

func sameAdapter(t *testing.T, name string, got, want *Adapter) {
	t.Helper()
	g, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g, w) {
		t.Errorf("%s: got %s\nwant %s", name, clip(string(g)), clip(string(w)))
	}
}

func sameFolder(t *testing.T, got, want string) {
	t.Helper()
	for _, name := range []string{adapterName, adapterConfigName} {
		g, err := os.ReadFile(filepath.Join(got, name))
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.ReadFile(filepath.Join(want, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(g, w) {
			t.Errorf("%s and %s have different bytes in %s", got, want, name)
		}
	}
}

// ours is the adapter in testdata/ours, for the model of make_fixtures.py: every projection and lm_head.
func ours() *Adapter {
	a := &Adapter{BaseModel: "tiny/qwen3", Rank: 5, Alpha: 32}
	add := func(module string, in, out int) {
		for _, f := range []struct {
			name       string
			rows, cols int
		}{{"A", 5, in}, {"B", out, 5}} {
			x := AdapterTensor{Name: "base_model.model." + module + ".lora_" + f.name + ".weight", Shape: []int{f.rows, f.cols}}
			for i := range f.rows * f.cols {
				seed := uint32(i+1)*2654435761 ^ uint32(len(a.Tensors))*40503
				x.Values = append(x.Values, float32(int32(seed*747796405))/(1<<33)) // ±0.25
			}
			a.Tensors = append(a.Tensors, x)
		}
	}
	for _, layer := range []string{"model.layers.0.", "model.layers.1."} {
		add(layer+"self_attn.q_proj", 12, 24)
		add(layer+"self_attn.k_proj", 12, 12)
		add(layer+"self_attn.v_proj", 12, 12)
		add(layer+"self_attn.o_proj", 24, 12)
		add(layer+"mlp.gate_proj", 12, 20)
		add(layer+"mlp.up_proj", 12, 20)
		add(layer+"mlp.down_proj", 20, 12)
	}
	add("lm_head", 12, 37)
	return a
}

// TestOurFolder pins the bytes of the folder that testdata/check_peft.py loads with peft.
func TestOurFolder(t *testing.T) {
	if *update {
		if err := WriteAdapter("testdata/ours", ours()); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := WriteAdapter(dir, ours()); err != nil {
		t.Fatal(err)
	}
	sameFolder(t, dir, "testdata/ours")
	a, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := ours()
	want.Targets = strings.Fields("down_proj gate_proj k_proj lm_head o_proj q_proj up_proj v_proj")
	slices.SortFunc(want.Tensors, func(x, y AdapterTensor) int { return strings.Compare(x.Name, y.Name) })
	sameAdapter(t, dir, a, want)
}
