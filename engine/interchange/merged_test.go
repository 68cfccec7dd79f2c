package interchange

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
)

const (
	mergeFrom    = "../model/testdata/qwen3-untied" // bfloat16, two files
	mergeExperts = "../model/testdata/qwen3moe-hub"
	mergeFused   = "../model/testdata/qwen3moe-fused"
	mergeTied    = "../model/testdata/qwen3-tied"
)

func fails(t *testing.T, what string, err error, code api.Code, parts ...string) {
	t.Helper()
	if err == nil || api.CodeOf(err) != code {
		t.Errorf("%s: error is %v (%v), wanted %v", what, err, api.CodeOf(err), code)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: error is %q, wanted %q in it", what, err, p)
		}
	}
}

func listed(t *testing.T, dir string) []string {
	t.Helper()
	names, err := disk.System{}.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func planOf(t *testing.T, a *Adapter, base *hf.Checkpoint, o MergedOptions) (*Export, *merged) {
	t.Helper()
	m, err := planMerged(a, base, o)
	if err != nil {
		t.Fatal(err)
	}
	return &Export{Format: "merged", Bytes: m.bytes, write: m.write}, m
}

// TestMergedMisfit: an adapter that does not fit the base is refused by the tensor's name, with what was wanted and got.
func TestMergedMisfit(t *testing.T) {
	const q = "model.layers.0.self_attn.q_proj"
	const w2 = "model.layers.0.mlp.experts.w2"
	for _, c := range []struct {
		what, base string
		change     func(a *Adapter)
		code       api.Code
		parts      []string
	}{
		{"another rank", mergeFrom, func(a *Adapter) { a.Lora.Rank = 3 }, api.BadRequest, []string{".lora_A.weight has shape [2 27], wanted [3 27]"}},
		{"another model", mergeTied, func(a *Adapter) {}, api.BadRequest, []string{"adapter tensor ", "has shape [2 27], wanted [2 28]"}},
		{"no partner", mergeFrom, func(a *Adapter) {
			a.Factors = slices.DeleteFunc(a.Factors, func(t api.TensorInfo) bool { return t.Name == q+".lora_B.weight" })
		}, api.BadRequest, []string{"adapter tensor " + q + ".lora_A.weight has no partner"}},
		{"twice", mergeFrom, func(a *Adapter) { a.Factors = append(a.Factors, a.Factors[0]) }, api.BadRequest, []string{a0(t) + " appears twice"}},
		{"not a module", mergeFrom, func(a *Adapter) { a.Factors[0].Name = "model.layers.7.self_attn.q_proj.lora_A.weight" }, api.BadRequest,
			[]string{`adapter tensor "model.layers.7.self_attn.q_proj.lora_A.weight" belongs to no module of the base`}},
		{"not a factor", mergeFrom, func(a *Adapter) { a.Factors[0].Name = q + ".lora_C.weight" }, api.BadRequest, []string{"lora_C"}},
		{"not float32", mergeFrom, func(a *Adapter) { a.Factors[0].DType = "BF16" }, api.Unsupported, []string{"is BF16, wanted F32"}},
		{"nothing", mergeFrom, func(a *Adapter) { a.Factors = nil }, api.BadRequest, []string{"the adapter has no factors"}},
		{"a scale that is none", mergeFrom, func(a *Adapter) { a.Scale = math.NaN() }, api.BadRequest, []string{"scale is NaN"}},
		{"experts' factors of a plain layout", mergeExperts, func(a *Adapter) {
			for i := range a.Factors {
				if a.Factors[i].Name == w2+".lora_A.weight" {
					a.Factors[i].Shape = []int{2, 9}
				}
			}
		}, api.BadRequest, []string{w2 + ".lora_A.weight has shape [2 9], wanted [6 2 9]"}},
		{"experts in a dense layer", mergeExperts, func(a *Adapter) { a.Factors[0].Name = "model.layers.1.mlp.experts.w1.lora_A.weight" }, api.BadRequest,
			[]string{"model.layers.1.mlp.experts.w1.lora_A.weight"}},
	} {
		from := c.base
		if from == mergeTied {
			from = mergeFrom
		}
		a := peftAdapter(t, from+"/adapter")
		c.change(a)
		_, err := PlanMerged(context.Background(), a, openBase(t, c.base), MergedOptions{})
		fails(t, c.what, err, c.code, append(c.parts, "merge into "+c.base)...)
	}
	_, err := PlanMerged(context.Background(), peftAdapter(t, mergeFrom+"/adapter"), openBase(t, mergeFrom), MergedOptions{DType: kernels.F16})
	fails(t, "another type", err, api.BadRequest, "wanted F32, BF16")
}

// a0 is the name of the first factor of mergeFrom's adapter.
func a0(t *testing.T) string { return peftAdapter(t, mergeFrom+"/adapter").Factors[0].Name }

// rewrite copies a base of one or more files, with tensors changed: change returns what a tensor is to be, or false to leave it out. more are
// tensors more.
func rewrite(t *testing.T, from string, change func(hf.Tensor) (hf.Tensor, bool), more ...hf.Source) string {
	t.Helper()
	base := openBase(t, from)
	dir := t.TempDir()
	sources := more
	for _, n := range base.Names() {
		x, _ := base.Tensor(n)
		if x, ok := change(x); ok {
			sources = append(sources, x.Source())
		}
	}
	var file bytes.Buffer
	if err := hf.WriteSafetensors(&file, sources, nil); err != nil {
		t.Fatal(err)
	}
	for n, b := range map[string][]byte{mergedConfig: base.Config.Raw, mergedWeights: file.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestMergedHostileBase: what is missing or wrong in the base is named, by the plan where that is possible.
func TestMergedHostileBase(t *testing.T) {
	const q = "model.layers.1.self_attn.q_proj.weight"
	only := func(name string, change func(*hf.Tensor)) func(hf.Tensor) (hf.Tensor, bool) {
		return func(x hf.Tensor) (hf.Tensor, bool) {
			if x.Name == name && change == nil {
				return x, false
			}
			if x.Name == name {
				change(&x)
			}
			return x, true
		}
	}
	for _, c := range []struct {
		what, from string
		change     func(hf.Tensor) (hf.Tensor, bool)
		code       api.Code
		parts      []string
	}{
		{"missing", mergeFrom, only(q, nil), api.NotFound, []string{"adapter module model.layers.1.self_attn.q_proj", `tensor "` + q + `" is missing`}},
		{"shape", mergeFrom, only(q, func(x *hf.Tensor) { x.Shape = []int{27, 36} }), api.BadRequest, []string{`"` + q + `" has shape [27 36], wanted [36 27]`}},
		{"type", mergeFrom, only(q, func(x *hf.Tensor) { x.Stored = "I16" }), api.Unsupported, []string{`"` + q + `" is I16, wanted F32, BF16 or F16`}},
		{"no head", mergeFrom, only("lm_head.weight", nil), api.NotFound, []string{"adapter module lm_head", "is missing"}},
		{"no embedding", mergeTied, only(embedWeight, nil), api.NotFound, []string{"adapter module lm_head", "embed_tokens"}},
		{"an expert", mergeExperts, only("model.layers.0.mlp.experts.3.up_proj.weight", nil), api.NotFound, []string{"adapter module model.layers.0.mlp.experts.w3", "experts.3.up_proj"}},
		{"half of fused experts", mergeFused, only("model.layers.1.mlp.experts.down_proj", nil), api.NotFound, []string{"experts.w2", "experts.down_proj"}},
		{"too few experts", mergeFused, only("model.layers.1.mlp.experts.down_proj", func(x *hf.Tensor) {
			x.Shape, x.Data = []int{4, x.Shape[1], x.Shape[2]}, x.Data[:len(x.Data)/5*4]
		}), api.BadRequest, []string{"has shape [4 18 7], wanted [5 18 7]"}},
	} {
		_, err := PlanMerged(context.Background(), peftAdapter(t, c.from+"/adapter"), openBase(t, rewrite(t, c.from, c.change)), MergedOptions{})
		fails(t, c.what, err, c.code, c.parts...)
	}

	dir := t.TempDir()
	for _, n := range listed(t, mergeFrom) {
		if b, err := os.ReadFile(filepath.Join(mergeFrom, n)); err == nil && n != "model-00002-of-00002.safetensors" {
			if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := hf.Open(dir)
	fails(t, "a file of weights is missing", err, api.NotFound, "model-00002-of-00002.safetensors")

	nan := rewrite(t, mergeFrom, only(q, func(x *hf.Tensor) {
		x.Data = slices.Clone(x.Data)
		binary.LittleEndian.PutUint16(x.Data[2*40:], 0x7fc0)
	}))
	x, _ := planOf(t, peftAdapter(t, mergeFrom+"/adapter"), openBase(t, nan), MergedOptions{})
	parent := t.TempDir()
	err = x.Write(context.Background(), filepath.Join(parent, "m"), WriteOptions{})
	fails(t, "not a number", err, api.BadRequest, "export merged to ", "tensor "+q+": value 40 is not finite as BF16")
	if left := listed(t, parent); len(left) > 0 {
		t.Errorf("%v is left", left)
	}

	a := peftAdapter(t, mergeFrom+"/adapter")
	bad := *a
	bad.read = func(ctx context.Context, name string, dst []byte) error {
		err := a.read(ctx, name, dst)
		if name == a.Factors[2].Name {
			binary.LittleEndian.PutUint32(dst[12:], 0x7fffffff)
		}
		return err
	}
	x, _ = planOf(t, &bad, openBase(t, mergeFrom), MergedOptions{})
	err = x.Write(context.Background(), filepath.Join(parent, "m"), WriteOptions{})
	fails(t, "a factor is not a number", err, api.BadRequest, "adapter tensor "+a.Factors[2].Name+": value 3 is NaN")
}

// TestMergedCaught: a written value that is wrong is found, whether it is a large error or one step of the type, and nothing is left.
func TestMergedCaught(t *testing.T) {
	for _, c := range []struct {
		what, from, tensor string
		damage             func(t *testing.T, block []byte)
		part               string
	}{
		{"a lost update", mergeFrom, "model.layers.0.mlp.down_proj.weight", func(t *testing.T, b []byte) {
			base := openBase(t, mergeFrom)
			x, _ := base.Tensor("model.layers.0.mlp.down_proj.weight")
			copy(b, x.Data[:len(b)])
		}, "row 0"},
		{"a bit of an exponent", mergeFrom, "model.layers.0.mlp.down_proj.weight", func(_ *testing.T, b []byte) { b[31] ^= 0x40 }, "row 0, column 15"},
		{"a step everywhere", mergeFrom, "model.layers.2.self_attn.k_proj.weight", func(_ *testing.T, b []byte) {
			for i := 0; i < len(b); i += 2 {
				b[i] ^= 1
			}
		}, "row "},
		{"a step in a column", mergeFrom, "model.layers.0.mlp.down_proj.weight", func(_ *testing.T, b []byte) {
			for i := 2 * 7; i < len(b); i += 2 * 31 { // hidden from the sums by the roundings of the other values
				b[i] ^= 1
			}
		}, ", column 7 is -0.019287109375, wanted "},
		{"two rows exchanged", mergeExperts, "model.layers.2.mlp.experts.4.up_proj.weight", func(_ *testing.T, b []byte) {
			const n = 22 * 4
			one := slices.Clone(b[:n])
			copy(b, b[n:2*n])
			copy(b[n:], one)
		}, "row 0"},
		{"an expert's rows of a fused tensor", mergeFused, "model.layers.1.mlp.experts.gate_up_proj", func(_ *testing.T, b []byte) { b[1] ^= 0x40 }, "row 0, column 0"},
		{"a bit of an untouched tensor", mergeFrom, "model.norm.weight", func(_ *testing.T, b []byte) { b[3] ^= 1 }, "is not the base's"},
	} {
		x, m := planOf(t, peftAdapter(t, c.from+"/adapter"), openBase(t, c.from), MergedOptions{})
		done := false
		m.spot = func(tensor string, block []byte) {
			if tensor == c.tensor && !done {
				done = true
				c.damage(t, block)
			}
		}
		parent := t.TempDir()
		err := x.Write(context.Background(), filepath.Join(parent, "new", "m"), WriteOptions{})
		fails(t, c.what, err, api.Internal, "comparing what was written: tensor "+c.tensor, c.part)
		if left := listed(t, parent); len(left) > 0 {
			t.Errorf("%s: %v is left", c.what, left)
		}
	}
}

// TestMergedStaleHead: a head that lies in the file of a tied model is not looked at, as loaders do not.
func TestMergedStaleHead(t *testing.T) {
	a := peftAdapter(t, mergeTied+"/adapter")
	dir := rewrite(t, mergeTied, func(x hf.Tensor) (hf.Tensor, bool) { return x, true }, hf.Floats("lm_head.weight", []int{3}, []float32{1, 2, 3}))
	got, _ := merge(t, a, openBase(t, dir), MergedOptions{})
	want, _ := merge(t, a, openBase(t, mergeTied), MergedOptions{})
	x, _ := openBase(t, got).Tensor("lm_head.weight")
	y, _ := openBase(t, want).Tensor("lm_head.weight")
	if !slices.Equal(x.Shape, y.Shape) || !bytes.Equal(x.Data, y.Data) {
		t.Errorf("the head is %v, wanted %v", x.Shape, y.Shape)
	}
}

// TestMergedOptions: the head left out, types converted, and products by a device.
func TestMergedOptions(t *testing.T) {
	base := openBase(t, mergeTied)
	a := peftAdapter(t, mergeTied+"/adapter")
	dir, x := merge(t, a, base, MergedOptions{DropUnembed: true})
	got := openBase(t, dir)
	if _, ok := got.Tensor("lm_head.weight"); ok || !got.Config.TieWordEmbeddings || !strings.Contains(strings.Join(x.Notes, "\n"), "left out") {
		t.Errorf("without the head: tied %v, notes %q", got.Config.TieWordEmbeddings, x.Notes)
	}
	if b, err := got.File(mergedConfig); err != nil || !bytes.Equal(b, base.Config.Raw) {
		t.Errorf("config.json is not the base's: %v", err)
	}
	_, x = merge(t, a, base, MergedOptions{})
	if note := strings.Join(x.Notes, "\n"); !strings.Contains(note, "lm_head.weight, 7952 bytes") { // 71 x 28 float32
		t.Errorf("notes are %q", note)
	}
	only := *a
	only.Factors = slices.DeleteFunc(slices.Clone(a.Factors), func(t api.TensorInfo) bool { return !strings.HasPrefix(t.Name, "lm_head") })
	_, err := PlanMerged(context.Background(), &only, base, MergedOptions{DropUnembed: true})
	fails(t, "only a head, left out", err, api.BadRequest, "nothing is left")
	x, err = PlanMerged(context.Background(), &only, base, MergedOptions{})
	if err != nil || !strings.Contains(strings.Join(x.Notes, "\n"), "no factors for 14 of the 15 modules") {
		t.Errorf("a part of the modules: %v, %v", x, err)
	}

	dir, _ = merge(t, a, base, MergedOptions{DType: kernels.BF16})
	short := openBase(t, dir)
	if short.Config.TorchDType != "bfloat16" {
		t.Errorf("dtype is %q", short.Config.TorchDType)
	}
	for _, n := range short.Names() {
		if y, _ := short.Tensor(n); y.Stored != "BF16" {
			t.Errorf("tensor %s is %s", n, y.Stored)
		}
	}

	dev, err := cpu.Open(cpu.Options{MemoryLimit: 1 << 24})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for _, from := range []string{mergeFrom, mergeFused, mergeTied} {
		base, a := openBase(t, from), peftAdapter(t, from+"/adapter")
		free := dev.Info().Free
		plain, _ := merge(t, a, base, MergedOptions{})
		device, _ := merge(t, a, base, MergedOptions{Device: dev})
		if now := dev.Info().Free; now != free {
			t.Errorf("%s: %d bytes of the device are free, %d before", from, now, free)
		}
		p, d := openBase(t, plain), openBase(t, device)
		off, n := 0, 0
		for _, name := range p.Names() {
			x, _ := p.Tensor(name)
			y, _ := d.Tensor(name)
			n += x.Len()
			for i, v := range x.Float32s() {
				if w := y.Float32s()[i]; v != w {
					off++
				}
			}
		}
		if off > n/1000 || from == mergeTied && off > 0 { // float32 is summed in float64, whatever the device
			t.Errorf("%s: %d of %d values differ with a device", from, off, n)
		}
	}
}

// TestMergedOthers: plain files come along; links out of the folder, folders, other weights and adapters do not.
func TestMergedOthers(t *testing.T) {
	dir := rewrite(t, mergeFrom, func(x hf.Tensor) (hf.Tensor, bool) { return x, true })
	outside := filepath.Join(t.TempDir(), "secret")
	for name, text := range map[string]string{
		"tokenizer.json": "{}", "chat_template.jinja": "x", "LICENSE": "free", "README.md": "card", "vocab.json": "{}", "pytorch_model.bin": "w",
		"adapter_config.json": "{}", ".gitattributes": "a", outside: "s",
	} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "original"), 0o700); err != nil {
		t.Fatal(err)
	}
	links := os.Symlink("vocab.json", filepath.Join(dir, "merges.txt")) == nil && os.Symlink(outside, filepath.Join(dir, "tokenizer_config.json")) == nil
	out, x := merge(t, peftAdapter(t, mergeFrom+"/adapter"), openBase(t, dir), MergedOptions{})
	want := []string{"LICENSE", "README.md", "chat_template.jinja", "config.json", "model.safetensors", mergedManifest, "tokenizer.json", "vocab.json"}
	if links {
		want = append(want, "merges.txt")
	}
	slices.Sort(want)
	if got := listed(t, out); !slices.Equal(got, want) {
		t.Errorf("the folder has %q, wanted %q", got, want)
	}
	note := strings.Join(x.Notes, "\n")
	for _, part := range []string{`"original" is a folder`, `"adapter_config.json" belongs to an adapter`, "README.md is the base's own"} {
		if !strings.Contains(note, part) {
			t.Errorf("notes are %q, wanted %q", note, part)
		}
	}
	if links && !strings.Contains(note, `"tokenizer_config.json" is a link that leads out of the folder`) {
		t.Errorf("notes are %q", note)
	}
	x2, _ := planOf(t, peftAdapter(t, mergeFrom+"/adapter"), openBase(t, dir), MergedOptions{})
	if err := os.WriteFile(filepath.Join(dir, "LICENSE"), []byte("paid"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, "a changed file", x2.Write(context.Background(), filepath.Join(t.TempDir(), "m"), WriteOptions{}), api.BadRequest, `"LICENSE" has changed`)
}

// TestMergedHubCache: a model in a hub cache, all of whose files are links to blobs, comes along whole, and as files.
func TestMergedHubCache(t *testing.T) {
	root := filepath.Join(t.TempDir(), "models--org--name")
	dir, blobs := filepath.Join(root, "snapshots", "abc"), filepath.Join(root, "blobs")
	for _, d := range []string{dir, blobs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"config.json", "generation_config.json", "model.safetensors"} {
		b, err := os.ReadFile(filepath.Join(mergeTied, n))
		if err == nil {
			err = os.WriteFile(filepath.Join(blobs, "blob-"+n), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if os.Symlink(filepath.Join("..", "..", "blobs", "blob-"+n), filepath.Join(dir, n)) != nil {
			t.Skip("no links here")
		}
	}
	out, x := merge(t, peftAdapter(t, mergeTied+"/adapter"), openBase(t, dir), MergedOptions{})
	if got := listed(t, out); !slices.Equal(got, []string{"config.json", "generation_config.json", "model.safetensors", mergedManifest}) {
		t.Errorf("the folder has %q; notes %q", got, x.Notes)
	}
	for _, n := range listed(t, out) {
		if st, err := os.Lstat(filepath.Join(out, n)); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s is %v: %v", n, st.Mode(), err)
		}
	}
}

// TestMergedFS: a model in memory, as the embedded one, merges as one in a folder does, from a stored checkpoint as from the host.
func TestMergedFS(t *testing.T) {
	base, err := hf.OpenFS("embedded", os.DirFS(mergeTied))
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	a := peftAdapter(t, mergeTied+"/adapter")
	want, _ := merge(t, a, openBase(t, mergeTied), MergedOptions{})
	r := &storedState{c: api.Checkpoint{BaseModel: a.BaseModel, Lora: a.Lora}, a: a}
	got, _ := merge(t, FromCheckpoint(r), base, MergedOptions{})
	for _, n := range listed(t, want) {
		x, err := os.ReadFile(filepath.Join(want, n))
		if err != nil {
			t.Fatal(err)
		}
		if y, err := os.ReadFile(filepath.Join(got, n)); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s differs: %v", n, err)
		}
	}
}

// storedState is a training state that holds an adapter and moments.
type storedState struct {
	c api.Checkpoint
	a *Adapter
}

func (s *storedState) Checkpoint() api.Checkpoint { return s.c }

func (s *storedState) Tensors() []api.TensorInfo {
	ts := slices.Clone(s.a.Factors)
	for _, f := range s.a.Factors {
		ts = append(ts, api.TensorInfo{Name: lora.MomentM + f.Name, DType: "F32", Shape: f.Shape})
	}
	return ts
}

func (s *storedState) Read(ctx context.Context, name string, dst []byte) error {
	return s.a.read(ctx, name, dst)
}

func (s *storedState) Stream(context.Context, string, io.Writer) error { return errors.ErrUnsupported }

func (s *storedState) Close() error { return nil }
