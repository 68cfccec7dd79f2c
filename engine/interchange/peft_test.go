package interchange

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/kernels"
)

// TestPEFTRoundTrip: a checkpoint goes through a PEFT folder into another store and is the same there, bit for bit.
func TestPEFTRoundTrip(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name  string
		shape enginetest.Shape
		c     api.LoraConfig
		o     PEFTOptions
		notes string
	}{
		{"dense", enginetest.Small, seeded(49, true, true, true), PEFTOptions{}, ""}, // 32/49·49 is not 32
		{"without the head", enginetest.Small, seeded(3, true, false, true), PEFTOptions{Unembed: DropUnembed}, "the factors of the output projection are left out"},
		{"experts", experts, seeded(2, true, true, true), PEFTOptions{Unembed: KeepUnembed}, "PEFT has factors for each of the 3 experts of a layer; what they share is written for each, which takes 384 bytes more; " +
			"with transformers 5, peft 0.20 or newer is needed: older ones leave out the factors of experts, without an error; peft with transformers 5 leaves out the factors of dense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sites := sitesOf(t, c.shape)
			st, other := memory(t), memory(t)
			was := saved(t, st, sites, state("run-1", c.c))
			x, err := PlanPEFT(FromCheckpoint(opened(t, st, was.Path)), c.o)
			if err != nil {
				t.Fatal(err)
			}
			if notes := strings.Join(x.Notes, "; "); !strings.HasPrefix(notes, c.notes) || c.notes == "" && notes != "" {
				t.Errorf("notes %q", notes)
			}
			dir := filepath.Join(t.TempDir(), "a")
			if err := x.Write(ctx, dir, WriteOptions{}); err != nil {
				t.Fatal(err)
			}
			size := 0
			for _, b := range files(t, dir) {
				size += len(b)
			}
			if int64(size) != x.Bytes {
				t.Errorf("%d bytes, %d were announced", size, x.Bytes)
			}
			sent, err := PEFTFiles(FromCheckpoint(opened(t, st, was.Path)), c.o)
			if err != nil {
				t.Fatal(err)
			}
			folder := files(t, dir)
			folder[completeFile] = ""
			for _, f := range sent {
				for range 2 {
					var b bytes.Buffer
					if err := f.Write(ctx, &b); err != nil || b.String() != folder[f.Name] || int64(b.Len()) != f.Bytes {
						t.Errorf("%s: %d bytes (%v), announced %d, in the folder %d", f.Name, b.Len(), err, f.Bytes, len(folder[f.Name]))
					}
				}
			}
			if len(sent) != len(folder) || sent[len(sent)-1].Name != completeFile {
				t.Errorf("%d files, wanted %d with %s as the last", len(sent), len(folder), completeFile)
			}
			if !strings.Contains(files(t, dir)[configFile], `"lora_alpha": 32,`) {
				t.Errorf("%s", files(t, dir)[configFile])
			}
			src, err := OpenPEFT(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			got, err := Import(ctx, src, sites, other, api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindSampler, Name: "n"}, Owner: "me"}, ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			alone := state("alone", c.c)
			alone.Optimizer = false
			want := saved(t, st, sites, alone)
			if c.o.Unembed == DropUnembed {
				if got.Lora.TrainUnembed || !got.Lora.TrainAttn {
					t.Errorf("%+v", got.Lora)
				}
			} else if got.SHA256 != want.SHA256 || got.BaseModel != "Org/Name" {
				t.Errorf("came back as %+v", got)
			}
		})
	}
}

// TestPlanPEFT: a folder appears whole or not at all, and replaces only what may be replaced.
func TestPlanPEFT(t *testing.T) {
	st := memory(t)
	c := saved(t, st, sitesOf(t, experts), state("run-1", seeded(1, false, true, true)))
	a := FromCheckpoint(opened(t, st, c.Path))
	x, err := PlanPEFT(a, PEFTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holdsOnDisk(t, x, "a")
	dir := filepath.Join(t.TempDir(), "a")
	for i, want := range []string{"", "an adapter is there already", ""} {
		expect(t, "write", x.Write(context.Background(), dir, WriteOptions{Replace: i == 2}), api.BadRequest, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "mine.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "foreign file", x.Write(context.Background(), dir, WriteOptions{Replace: true}), api.BadRequest, `it holds "mine.txt", which is not part of an adapter`)
	head, err := PlanPEFT(a, PEFTOptions{Unembed: MergeUnembed, Base: folder(t, experts)})
	if err != nil {
		t.Fatal(err)
	}
	holdsOnDisk(t, head, "a")
	for _, bad := range []struct {
		o    PEFTOptions
		want string
	}{
		{PEFTOptions{Unembed: "x"}, `export peft: unembed is "x", wanted keep, drop or merge`},
		{PEFTOptions{Unembed: MergeUnembed}, "to merge the output projection, the base model's folder is needed"},
		{PEFTOptions{Unembed: MergeUnembed, Base: folder(t, enginetest.Small)}, `tensor "model.embed_tokens.weight" has shape [61 24], wanted [13 8]`},
	} {
		_, err := PlanPEFT(a, bad.o)
		expect(t, "refused", err, api.BadRequest, bad.want)
	}
	only := lora.Tensor{Name: "lm_head.lora_A.weight", Shape: []int{1, 2}, Values: []float32{1, float32(math.NaN())}}
	b := lora.Tensor{Name: "lm_head.lora_B.weight", Shape: []int{1, 1}, Values: []float32{1}}
	broken := FromTensors("", api.LoraConfig{Rank: 1, TrainUnembed: true}, 32, []lora.Tensor{only, b})
	_, err = PlanPEFT(broken, PEFTOptions{Unembed: DropUnembed})
	expect(t, "nothing left", err, api.BadRequest, "nothing is left")
	if x, err = PlanPEFT(broken, PEFTOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, "not a number", x.Write(context.Background(), filepath.Join(t.TempDir(), "x"), WriteOptions{}), api.BadRequest, "value 1 is NaN: the training diverged")
}

// TestMergedHead: the folder's projection is W + scale·B·A, in the base's type and rounded once.
func TestMergedHead(t *testing.T) {
	for _, stored := range []kernels.DType{kernels.F32, kernels.BF16, kernels.F16} {
		const V, D, R = 5, 3, 2
		rng := rand.New(rand.NewPCG(1, 2))
		random := func(n int) []float32 {
			v := make([]float32, n)
			for i := range v {
				v[i] = float32(rng.NormFloat64())
			}
			return v
		}
		w, fa, fb := random(V*D), random(R*D), random(V*R)
		base := enginetest.Small
		base.Vocab, base.Hidden = V, D
		files := base.Folder()
		var b bytes.Buffer
		words := map[kernels.DType]string{kernels.F32: "F32", kernels.BF16: "BF16", kernels.F16: "F16"}
		data := make([]byte, 0, 4*V*D)
		for i, x := range w {
			switch stored {
			case kernels.F32:
				u := math.Float32bits(x)
				data = append(data, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
				continue
			case kernels.BF16:
				u := kernels.F32ToBF16(x)
				data, w[i] = append(data, byte(u), byte(u>>8)), kernels.BF16ToF32(u)
			case kernels.F16:
				u := halfBits(x)
				data, w[i] = append(data, byte(u), byte(u>>8)), kernels.F16ToF32(u)
			}
		}
		err := hf.WriteSafetensors(&b, []hf.Source{hf.Tensor{Name: "model.embed_tokens.weight", Stored: words[stored], Shape: []int{V, D}, Data: data}.Source()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		files["model.safetensors"].Data = b.Bytes()
		c, err := hf.OpenFS("base", files)
		if err != nil {
			t.Fatal(err)
		}
		a := FromTensors("b", api.LoraConfig{Rank: R, TrainUnembed: true}, 16, []lora.Tensor{
			{Name: "lm_head.lora_A.weight", Shape: []int{R, D}, Values: fa}, {Name: "lm_head.lora_B.weight", Shape: []int{V, R}, Values: fb},
			{Name: "model.layers.0.self_attn.q_proj.lora_A.weight", Shape: []int{R, D}, Values: fa}, {Name: "model.layers.0.self_attn.q_proj.lora_B.weight", Shape: []int{V, R}, Values: fb}})
		x, err := PlanPEFT(a, PEFTOptions{Unembed: MergeUnembed, Base: c})
		if err != nil || len(x.Notes) != 1 || !strings.Contains(x.Notes[0], "rounded to "+words[stored]+"; the base's is its embedding") {
			t.Fatalf("%+v, %v", x, err)
		}
		dir := filepath.Join(t.TempDir(), "a")
		if err := x.Write(context.Background(), dir, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		f, err := hf.OpenFile(filepath.Join(dir, weightsFile))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		i := slices.IndexFunc(f.Tensors, func(t hf.Tensor) bool { return t.Name == "base_model.model.lm_head.weight" })
		if len(f.Tensors) != 3 || i < 0 || f.Tensors[i].DType != stored {
			t.Fatalf("%+v", f.Tensors)
		}
		merged := f.Tensors[i].Float32s()
		half := map[kernels.DType]float64{kernels.F32: 0x1p-24, kernels.BF16: 0x1p-8, kernels.F16: 0x1p-11}[stored]
		for i, got := range merged {
			want := float64(w[i])
			for r := range R {
				want += 16 * float64(fb[i/D*R+r]) * float64(fa[r*D+i%D])
			}
			if math.Abs(float64(got)-want) > half*math.Abs(want)*(1+1e-9) {
				t.Errorf("%v: value %d is %v, wanted %v", stored, i, got, want)
			}
		}
		_, err = OpenPEFT(dir)
		expect(t, "whole modules are not imported", err, api.Unsupported, "modules_to_save")
		c.Close()
	}
}

// TestHalfBits: every half comes back, and what lies between two is rounded to the nearest, ties to even.
func TestHalfBits(t *testing.T) {
	for h := range uint16(0x7c00) {
		f := kernels.F16ToF32(h)
		if halfBits(f) != h || halfBits(-f) != h|0x8000 {
			t.Fatalf("%#04x is %v, which is %#04x", h, f, halfBits(f))
		}
		next := kernels.F16ToF32(h + 1)
		if h == 0x7bff {
			next = 65536
		}
		mid := f + (next-f)/2 // exact
		for _, c := range []struct {
			f    float32
			want uint16
		}{{math.Nextafter32(mid, 0), h}, {mid, h + h&1}, {math.Nextafter32(mid, 1e9), h + 1}} {
			if got := halfBits(c.f); got != c.want {
				t.Fatalf("%v is %#04x, wanted %#04x", c.f, got, c.want)
			}
		}
	}
}
