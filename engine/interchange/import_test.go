package interchange

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
)

// TestNames: every name of a factor in a file is understood, and what cannot be adapted is refused by name.
func TestNames(t *testing.T) {
	const l = "base_model.model.model.layers.3."
	for _, c := range []struct {
		file, factor string
		expert       int
		code         api.Code
		want         string
	}{
		{"base_model.model.lm_head.lora_A.weight", "lm_head.lora_A.weight", -1, "", ""},
		{"base_model.model.model.lm_head.lora_B.weight", "lm_head.lora_B.weight", -1, "", ""},
		{"base_model.model.model.unembed_tokens.lora_A.weight", "lm_head.lora_A.weight", -1, "", ""},
		{l + "self_attn.q_proj.lora_A.weight", "model.layers.3.self_attn.q_proj.lora_A.weight", -1, "", ""},
		{l + "mlp.experts.w1.lora_B.weight", "model.layers.3.mlp.experts.w1.lora_B.weight", -1, "", ""},
		{l + "mlp.experts.12.gate_proj.lora_A.weight", "model.layers.3.mlp.experts.w1.lora_A.weight", 12, "", ""},
		{l + "mlp.experts.0.down_proj.lora_B.weight", "model.layers.3.mlp.experts.w2.lora_B.weight", 0, "", ""},
		{l + "mlp.experts.1.up_proj.lora_B.weight", "model.layers.3.mlp.experts.w3.lora_B.weight", 1, "", ""},
		{"model.layers.3.self_attn.q_proj.lora_A.weight", "", 0, api.BadRequest, `adapter tensor "model.layers.3.self_attn.q_proj.lora_A.weight": wanted a name that begins with base_model.model.`},
		{"base_model.model.model.embed_tokens.lora_A.weight", "", 0, api.Unsupported, `embed_tokens.lora_A.weight" adapts a module that cannot be adapted here`},
		{l + "mlp.experts.1.router.lora_A.weight", "", 0, api.Unsupported, "adapts a part of an expert other than"},
		{l + "mlp.experts.01.gate_proj.lora_A.weight", "", 0, api.BadRequest, `the expert is "01", wanted 0 to 16383`},
		{l + "mlp.experts.-1.gate_proj.lora_A.weight", "", 0, api.BadRequest, `the expert is "-1"`},
		{l + "mlp.experts.99999.gate_proj.lora_A.weight", "", 0, api.BadRequest, `the expert is "99999"`},
	} {
		factor, expert, err := engineName(c.file)
		expect(t, c.file, err, c.code, c.want)
		if err == nil && (factor != c.factor || expert != c.expert) {
			t.Errorf("%s is %s of expert %d", c.file, factor, expert)
		}
		if err == nil && expert >= 0 && expertName(factor, expert) != c.file {
			t.Errorf("%s becomes %s", c.file, expertName(factor, expert))
		}
	}
}

// ramp are n values that float32 does not have exactly times most things.
func ramp(n int, f float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = (float32(i) - 3.3) * f
	}
	return v
}

// imported reads all factors of what an adapter becomes on a base.
func imported(t *testing.T, dir string, sites []lora.Site, seed int64) (api.Checkpoint, map[string][]float32) {
	t.Helper()
	src, err := OpenPEFT(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	st := memory(t)
	c, err := Import(context.Background(), src, sites, st, api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindState, Name: "n"}, Owner: "me"}, ImportOptions{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	a := FromCheckpoint(opened(t, st, c.Path))
	out := map[string][]float32{}
	for _, f := range a.Factors {
		if out[f.Name], err = a.Floats(context.Background(), f); err != nil {
			t.Fatal(err)
		}
	}
	return c, out
}

// TestScales: another alpha and rsLoRA are folded into B, exactly for powers of two and rounded once otherwise.
func TestScales(t *testing.T) {
	sites := sitesOf(t, enginetest.Small)
	A := hf.Floats(q0+"A.weight", []int{2, 24}, ramp(48, 0.1))
	B := hf.Floats(q0+"B.weight", []int{40, 2}, ramp(80, 1e-3))
	for _, c := range []struct {
		config string
		factor float64 // of B
	}{
		{`{"r":2,"lora_alpha":32}`, 1},
		{`{"r":2,"lora_alpha":8}`, 0.25},
		{`{"r":2,"lora_alpha":6}`, 6.0 / 32},
		{`{"r":2,"lora_alpha":0}`, 0},
		{`{"r":2,"lora_alpha":32,"use_rslora":true}`, math.Sqrt2},
	} {
		got, factors := imported(t, peftDir(t, c.config, []hf.Source{A, B}), sites, 4)
		if got.Lora.Rank != 2 || !got.Lora.TrainAttn || got.Lora.TrainMLP || got.Lora.TrainUnembed || len(factors) != 2*4*2 {
			t.Errorf("%s: %+v, %d factors", c.config, got.Lora, len(factors))
		}
		if !slices.Equal(factors["model.layers.0.self_attn.q_proj.lora_A.weight"], ramp(48, 0.1)) {
			t.Errorf("%s: A changed", c.config)
		}
		for i, v := range ramp(80, 1e-3) {
			exact := float64(v) * c.factor
			b := factors["model.layers.0.self_attn.q_proj.lora_B.weight"][i]
			if math.Abs(float64(b)-exact) > math.Abs(exact)*0x1p-24*(1+1e-9) {
				t.Errorf("%s: B[%d] is %v, wanted %v", c.config, i, b, exact)
			}
			if c.factor == 0.25 && float64(b) != exact {
				t.Errorf("%s: B[%d] is %v, wanted exactly %v", c.config, i, b, exact)
			}
		}
	}
	huge := peftDir(t, `{"r":2,"lora_alpha":1e6}`, []hf.Source{A, hf.Floats(q0+"B.weight", []int{40, 2}, ramp(80, 1e36))})
	src, err := OpenPEFT(huge)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	st := memory(t)
	to := api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindState, Name: "n"}, Owner: "me"}
	_, err = Import(context.Background(), src, sites, st, to, ImportOptions{})
	expect(t, "too large", err, api.BadRequest, "times 31250 is too large for a float32")
	if _, err := st.Info(context.Background(), to.Path); api.CodeOf(err) != api.NotFound {
		t.Errorf("an import that failed left %v", err)
	}
}

// TestStoredTypes: bfloat16 and half are widened exactly.
func TestStoredTypes(t *testing.T) {
	for stored, bits := range map[string]uint16{"BF16": 0x3fc0, "F16": 0x3e00} { // 1.5
		source := func(name string, n int, shape ...int) hf.Source {
			var data []byte
			for range n {
				data = binary.LittleEndian.AppendUint16(data, bits)
			}
			return hf.Tensor{Name: q0 + name + ".weight", Stored: stored, Shape: shape, Data: data}.Source()
		}
		_, factors := imported(t, peftDir(t, plainConfig, []hf.Source{source("A", 48, 2, 24), source("B", 80, 40, 2)}), sitesOf(t, enginetest.Small), 0)
		for _, which := range []string{"A", "B"} {
			for _, v := range factors["model.layers.0.self_attn.q_proj.lora_"+which+".weight"] {
				if v != 1.5 {
					t.Fatalf("%s: %v", stored, v)
				}
			}
		}
	}
}

// TestCompletion: what an adapter lacks is what a fresh adapter of the seed has, whatever is asked for first.
func TestCompletion(t *testing.T) {
	sites := sitesOf(t, experts)
	const w1 = "base_model.model.model.layers.1.mlp.experts.w1.lora_"
	dir := peftDir(t, plainConfig, []hf.Source{
		hf.Floats(w1+"A.weight", []int{1, 2, 8}, ramp(16, 1)), hf.Floats(w1+"B.weight", []int{3, 4, 2}, ramp(24, 1)),
		hf.Floats("base_model.model.model.unembed_tokens.lora_A.weight", []int{2, 8}, ramp(16, 2)), hf.Floats("base_model.model.model.unembed_tokens.lora_B.weight", []int{13, 2}, ramp(26, 2)),
	})
	c, got := imported(t, dir, sites, 77)
	if *c.Lora.Seed != 77 || c.Lora.TrainAttn || !c.Lora.TrainMLP || !c.Lora.TrainUnembed {
		t.Errorf("%+v", c.Lora)
	}
	init := lora.NewInit(77)
	for _, f := range lora.Factors(sites, c.Lora) {
		want := make([]float32, f.Size)
		if f.IsA {
			init.Fill(want, f.Shape[len(f.Shape)-1])
		}
		if strings.Contains(f.Name, "experts.w1") || strings.HasPrefix(f.Name, "lm_head") {
			if slices.Equal(got[f.Name], want) {
				t.Errorf("%s is not the adapter's", f.Name)
			}
			continue
		}
		if !slices.Equal(got[f.Name], want) {
			t.Errorf("%s is not that of a fresh adapter", f.Name)
		}
	}
	src, err := OpenPEFT(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	a, err := src.Fit(sites, 77)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range slices.Backward(a.Factors) {
		if v, err := a.Floats(context.Background(), f); err != nil || !slices.Equal(v, got[f.Name]) {
			t.Errorf("%s read out of order differs: %v", f.Name, err)
		}
	}
}

// TestImportRefuses: what is no adapter of this base, or none that can be expressed, is refused by name and leaves nothing.
func TestImportRefuses(t *testing.T) {
	A, B := hf.Floats(q0+"A.weight", []int{2, 24}, ramp(48, 1)), hf.Floats(q0+"B.weight", []int{40, 2}, ramp(80, 1))
	named := func(name string, shape ...int) hf.Source {
		n := 1
		for _, d := range shape {
			n *= d
		}
		return hf.Floats("base_model.model."+name+".weight", shape, ramp(n, 1))
	}
	const e = "model.layers.1.mlp.experts."
	all := func(change func(name string, v []float32)) (out []hf.Source) {
		for i := range 3 {
			for _, x := range []struct {
				name  string
				shape []int
			}{{"gate_proj.lora_A", []int{2, 8}}, {"gate_proj.lora_B", []int{4, 2}}} {
				name := "base_model.model." + e + string(rune('0'+i)) + "." + x.name + ".weight"
				v := ramp(x.shape[0]*x.shape[1], 1)
				change(name, v)
				out = append(out, hf.Floats(name, x.shape, v))
			}
		}
		return out
	}
	same := all(func(string, []float32) {})
	for _, c := range []struct {
		name    string
		shape   enginetest.Shape
		config  string
		tensors []hf.Source
		code    api.Code
		want    string
	}{
		{"good", enginetest.Small, plainConfig, []hf.Source{A, B}, "", ""},
		{"experts", experts, plainConfig, same, "", ""},
		{"dora", enginetest.Small, `{"r":2,"lora_alpha":32,"use_dora":true}`, []hf.Source{A, B}, api.Unsupported, "use_dora is true"},
		{"whole modules", enginetest.Small, `{"r":2,"lora_alpha":32,"modules_to_save":["lm_head"]}`, []hf.Source{A, B}, api.Unsupported, `modules_to_save is ["lm_head"]`},
		{"biases", enginetest.Small, `{"r":2,"lora_alpha":32,"bias":"all"}`, []hf.Source{A, B}, api.Unsupported, `bias is "all"`},
		{"ranks", enginetest.Small, `{"r":2,"lora_alpha":32,"rank_pattern":{"k_proj":4}}`, []hf.Source{A, B}, api.Unsupported, "rank_pattern is"},
		{"parameters", experts, `{"r":2,"lora_alpha":32,"target_parameters":["mlp.experts.gate_up_proj"]}`, same, api.Unsupported, "target_parameters is"},
		{"embedding", enginetest.Small, plainConfig, []hf.Source{named("model.embed_tokens.lora_embedding_A", 1)}, api.Unsupported, "adapts an embedding"},
		{"half a module", enginetest.Small, plainConfig, []hf.Source{A}, api.BadRequest, "has lora_A but not lora_B"},
		{"another architecture", enginetest.Small, plainConfig, []hf.Source{named("model.layers.0.mlp.c_fc.lora_A", 2, 24), named("model.layers.0.mlp.c_fc.lora_B", 4, 2)}, api.BadRequest, `model.layers.0.mlp.c_fc.lora_A.weight" belongs to no module of the base model`},
		{"more layers", enginetest.Small, plainConfig, []hf.Source{named("model.layers.2.self_attn.q_proj.lora_A", 2, 24), named("model.layers.2.self_attn.q_proj.lora_B", 40, 2)}, api.BadRequest, "belongs to no module of the base model"},
		{"another width", experts, plainConfig, []hf.Source{A, B}, api.BadRequest, `lora_A.weight" has shape [2 24], the base model wants [2 8]`},
		{"experts on a dense model", enginetest.Small, plainConfig, same, api.BadRequest, "belongs to no module of the base model"},
		{"rank 513", enginetest.Small, `{"r":513,"lora_alpha":32}`, []hf.Source{named("lm_head.lora_A", 513, 24), named("lm_head.lora_B", 61, 513)}, api.BadRequest, "lora rank is 513, wanted 1..512"},
		{"head under two names", enginetest.Small, plainConfig, []hf.Source{named("lm_head.lora_A", 2, 24), named("lm_head.lora_B", 61, 2), named("model.unembed_tokens.lora_A", 2, 24), named("model.unembed_tokens.lora_B", 61, 2)}, api.BadRequest, "are two names of the same factor"},
		{"experts under two names", experts, plainConfig, append(slices.Clone(same), named(e+"w1.lora_A", 1, 2, 8), named(e+"w1.lora_B", 3, 4, 2)), api.BadRequest, "are two names of the same factor"},
		{"some experts", experts, plainConfig, same[2:], api.Unsupported, "has no expert 0, but one of a higher number; wanted all experts"},
		{"fewer experts", experts, plainConfig, same[:4], api.BadRequest, "has shape [2 4 2], the base model wants [3 4 2]"},
		{"experts that differ", experts, plainConfig, all(func(name string, v []float32) {
			if strings.Contains(name, ".2.gate_proj.lora_A") {
				v[3]++
			}
		}), api.Unsupported, "experts.2.gate_proj.lora_A.weight\" differs from that of expert 0"},
	} {
		st := memory(t)
		src, err := OpenPEFT(peftDir(t, c.config, c.tensors))
		if err == nil {
			_, err = Import(context.Background(), src, sitesOf(t, c.shape), st, api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindSampler, Name: "n"}, Owner: "me"}, ImportOptions{})
			src.Close()
		}
		expect(t, c.name, err, c.code, c.want)
		if page, err := st.List(context.Background(), api.CheckpointQuery{}); err != nil || (len(page.Checkpoints) == 1) != (c.want == "") {
			t.Errorf("%s: the store has %d checkpoints, %v", c.name, len(page.Checkpoints), err)
		}
	}
	_, err := OpenPEFT(t.TempDir())
	expect(t, "an empty folder", err, api.NotFound, "adapter_config.json")
}

// lyingStore gives back other bytes than it was given.
type lyingStore struct{ api.Store }

func (s lyingStore) Open(ctx context.Context, p api.Path) (api.CheckpointReader, error) {
	r, err := s.Store.Open(ctx, p)
	return lyingReader{r}, err
}

type lyingReader struct{ api.CheckpointReader }

func (r lyingReader) Read(ctx context.Context, name string, dst []byte) error {
	err := r.CheckpointReader.Read(ctx, name, dst)
	dst[0] ^= 1
	return err
}

// TestImportCompares: a checkpoint that is not what was imported does not stay.
func TestImportCompares(t *testing.T) {
	dir := peftDir(t, plainConfig, []hf.Source{hf.Floats(q0+"A.weight", []int{2, 24}, ramp(48, 1)), hf.Floats(q0+"B.weight", []int{40, 2}, ramp(80, 1))})
	src, err := OpenPEFT(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	st := memory(t)
	to := api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindSampler, Name: "n"}, Owner: "me"}
	_, err = Import(context.Background(), src, sitesOf(t, enginetest.Small), lyingStore{st}, to, ImportOptions{})
	expect(t, "a lying store", err, api.DataLoss, "import tinker://r/sampler_weights/n: reading it again: tensor model.layers.0.self_attn.q_proj.lora_A.weight is not what was written")
	if _, err := st.Info(context.Background(), to.Path); api.CodeOf(err) != api.NotFound {
		t.Errorf("it is still there: %v", err)
	}
}

// cancelStore cancels at its call number at.
type cancelStore struct {
	api.Store
	at, calls int
	cancel    func()
}

func (s *cancelStore) step() {
	if s.calls++; s.calls == s.at {
		s.cancel()
	}
}

func (s *cancelStore) Create(ctx context.Context, c api.Checkpoint, o api.SaveOptions) (api.CheckpointWriter, error) {
	w, err := s.Store.Create(ctx, c, o)
	return cancelWriter{w, s}, err
}

func (s *cancelStore) Open(ctx context.Context, p api.Path) (api.CheckpointReader, error) {
	s.step()
	r, err := s.Store.Open(ctx, p)
	return cancelReader{r, s}, err
}

type cancelWriter struct {
	api.CheckpointWriter
	s *cancelStore
}

func (w cancelWriter) Tensor(ctx context.Context, t api.TensorInfo, data []byte) error {
	w.s.step()
	return w.CheckpointWriter.Tensor(ctx, t, data)
}

func (w cancelWriter) Commit(ctx context.Context) (api.Checkpoint, error) {
	w.s.step()
	return w.CheckpointWriter.Commit(ctx)
}

type cancelReader struct {
	api.CheckpointReader
	s *cancelStore
}

func (r cancelReader) Read(ctx context.Context, name string, dst []byte) error {
	r.s.step()
	return r.CheckpointReader.Read(ctx, name, dst)
}

// TestImportCancelled: an import that is cancelled at any moment leaves no checkpoint.
func TestImportCancelled(t *testing.T) {
	sites := sitesOf(t, experts)
	src, err := OpenPEFT(peftDir(t, plainConfig, []hf.Source{hf.Floats(q0+"A.weight", []int{2, 8}, ramp(16, 1)), hf.Floats(q0+"B.weight", []int{12, 2}, ramp(24, 1))}))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	to := api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindState, Name: "n"}, Owner: "me"}
	for at := 1; ; at++ {
		ctx, cancel := context.WithCancel(context.Background())
		st := &cancelStore{Store: memory(t), at: at, cancel: cancel}
		_, err := Import(ctx, src, sites, st, to, ImportOptions{})
		cancel()
		_, there := st.Info(context.Background(), to.Path)
		if st.calls < at {
			if err != nil || there != nil {
				t.Errorf("not cancelled: %v, %v", err, there)
			}
			break
		}
		expect(t, "cancelled", err, api.Cancelled, "import tinker://r/weights/n: context canceled")
		if api.CodeOf(there) != api.NotFound {
			t.Errorf("cancelled at call %d: the checkpoint is there (%v)", at, there)
		}
	}
}
