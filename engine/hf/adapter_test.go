package hf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

const plainConfig = `{"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["q_proj"]}`

// having puts members into an adapter config that is plain without them.
func having(members string) string { return strings.TrimSuffix(plainConfig, "}") + "," + members + "}" }

var adapterConfigCases = []struct {
	name, text string
	code       api.Code
	want       string
}{
	{"good", plainConfig, "", ""},
	{"least", `{"r":2,"lora_alpha":8}`, "", ""},
	{"off", having(`"use_dora":false,"modules_to_save":null,"rank_pattern":{ },"layer_replication":[],"bias":"none","task_type":"CAUSAL_LM","new_feature":null`), "", ""},
	{"same ranks", having(`"rank_pattern":{"q_proj":2},"alpha_pattern":{"q_proj":8.0}`), "", ""},
	{"pattern of paths", `{"r":2,"lora_alpha":8,"target_modules":"all-linear"}`, "", ""},
	{"not json", `r: 2`, api.BadRequest, "invalid json near byte *"},
	{"empty", ``, api.BadRequest, "invalid json: it ends too early"},
	{"no rank", `{"lora_alpha":8}`, api.BadRequest, "r is missing"},
	{"no alpha", `{"r":2}`, api.BadRequest, "lora_alpha is missing"},
	{"rank 0", `{"r":0,"lora_alpha":8}`, api.BadRequest, "r is 0, wanted an integer of 1 to 16384"},
	{"absurd rank", `{"r":1e9,"lora_alpha":8}`, api.BadRequest, "r is 1e9, wanted an integer of 1 to 16384"},
	{"negative alpha", `{"r":2,"lora_alpha":-8}`, api.BadRequest, "lora_alpha is -8, wanted a number of 0 to 1e+06"},
	{"twice", having(`"r":3`), api.BadRequest, `"r" appears twice`},
	{"other method", having(`"x":1`)[:1] + `"peft_type":"IA3"}`, api.Unsupported, `peft_type is "IA3", wanted "LORA"`},
	{"targets", `{"r":2,"lora_alpha":8,"target_modules":[1]}`, api.BadRequest, "target_modules is [1], wanted a list of at most 65536 strings"},
	{"dora", having(`"use_dora":true`), api.Unsupported, "use_dora is true, wanted none: only plain LoRA on linear layers is supported"},
	{"qalora", having(`"use_qalora":true`), api.Unsupported, "use_qalora is true, wanted none: only plain LoRA on linear layers is supported"},
	{"lora_bias", having(`"lora_bias":true`), api.Unsupported, "lora_bias is true, wanted none: only plain LoRA on linear layers is supported"},
	{"conv1d", having(`"fan_in_fan_out":true`), api.Unsupported, "fan_in_fan_out is true, wanted none: only plain LoRA on linear layers is supported"},
	{"whole modules", having(`"modules_to_save":["lm_head"]`), api.Unsupported, `modules_to_save is ["lm_head"], wanted none: only plain LoRA on linear layers is supported`},
	{"repeated layers", having(`"layer_replication":[[0,4],[2,6]]`), api.Unsupported, "layer_replication is [[0,4],[2,6]], wanted none: only plain LoRA on linear layers is supported"},
	{"unknown feature", having(`"use_quantum":0.5`), api.Unsupported, "use_quantum is 0.5, wanted none: only plain LoRA on linear layers is supported"},
	{"biases", having(`"bias":"all"`), api.Unsupported, `bias is "all", wanted "none"`},
	{"classifier", having(`"task_type":"SEQ_CLS"`), api.Unsupported, `task_type is "SEQ_CLS", wanted "CAUSAL_LM"`},
	{"pissa", having(`"init_lora_weights":"pissa"`), api.Unsupported, `init_lora_weights is "pissa", wanted an initialisation that leaves the base as it is`},
	{"ranks", having(`"rank_pattern":{"k_proj":4}`), api.Unsupported, `rank_pattern is {"k_proj":4}, wanted the same rank for all modules`},
	{"alphas", having(`"alpha_pattern":{"k_proj":null}`), api.Unsupported, `alpha_pattern is {"k_proj":null}, wanted the same alpha for all modules`},
}

func TestAdapterConfig(t *testing.T) {
	for _, c := range adapterConfigCases {
		_, err := parseAdapterConfig([]byte(c.text))
		expect(t, c.name, err, c.code, c.want)
	}
}

// small is an adapter of one module.
func small() *Adapter {
	const q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
	return &Adapter{BaseModel: "b", Rank: 2, Alpha: 8, Tensors: []AdapterTensor{
		{Name: q + "A.weight", Shape: []int{2, 3}, Values: []float32{1, 2, 3, 4, 5, 6}},
		{Name: q + "B.weight", Shape: []int{1, 2}, Values: []float32{7, 8}},
	}}
}

func TestScale(t *testing.T) {
	a := Adapter{Rank: 16, Alpha: 32}
	if a.Scale() != 2 {
		t.Error(a.Scale())
	}
	if a.RSLoRA = true; a.Scale() != 8 {
		t.Error(a.Scale())
	}
}

// TestAdapterFolders reads folders whose two files do not agree.
func TestAdapterFolders(t *testing.T) {
	const A, B = "m.q_proj.lora_A.weight", "m.q_proj.lora_B.weight"
	good := []Source{Floats(A, []int{2, 3}, make([]float32, 6)), Floats(B, []int{4, 2}, make([]float32, 8))}
	raw := func(name, stored string, data string, shape ...int) Source {
		return Tensor{Name: name, Stored: stored, Shape: shape, Data: []byte(data)}.Source()
	}
	for _, c := range []struct {
		name, config string
		tensors      []Source
		code         api.Code
		want         string // after the file's path
	}{
		{"good", plainConfig, good, "", ""},
		{"beside a base layer", plainConfig, append(slices.Clone(good), raw("m.lm_head.base_layer.weight", "I8", "1", 1)), "", ""},
		{"no tensors", plainConfig, nil, api.BadRequest, "there are no tensors"},
		{"other rank", `{"r":3,"lora_alpha":8}`, good, api.BadRequest, `tensor "m.q_proj.lora_A.weight" has shape [2 3], wanted [rank, in] with rank 3`},
		{"B alone", plainConfig, good[1:], api.BadRequest, `module "m.q_proj" has lora_B but not lora_A`},
		{"A alone", plainConfig, good[:1], api.BadRequest, `module "m.q_proj" has lora_A but not lora_B`},
		{"B transposed", plainConfig, []Source{good[0], Floats(B, []int{2, 4}, make([]float32, 8))}, api.BadRequest,
			`tensor "m.q_proj.lora_B.weight" has shape [2 4], wanted [out, rank] with rank 2`},
		{"experts", plainConfig, []Source{Floats(A, []int{1, 2, 3}, make([]float32, 6))}, api.BadRequest,
			`tensor "m.q_proj.lora_A.weight" has shape [1 2 3], wanted [rank, in] with rank 2`},
		{"nothing", plainConfig, []Source{Floats(A, []int{2, 0}, nil)}, api.BadRequest,
			`tensor "m.q_proj.lora_A.weight" has shape [2 0], wanted [rank, in] with rank 2`},
		{"not a number", plainConfig, []Source{Floats(A, []int{2, 1}, []float32{0, float32(math.NaN())})}, api.BadRequest,
			`tensor "m.q_proj.lora_A.weight": value 1 is NaN: the file is damaged or the training diverged`},
		{"half infinity", plainConfig, []Source{raw(A, "F16", "\x00\x00\x00\xfc", 2, 1)}, api.BadRequest,
			`tensor "m.q_proj.lora_A.weight": value 1 is -Inf: the file is damaged or the training diverged`},
		{"doubles", plainConfig, []Source{raw(A, "F64", strings.Repeat("x", 48), 2, 3)}, api.Unsupported,
			`tensor "m.q_proj.lora_A.weight" is F64, wanted F32, BF16 or F16`},
		{"embedding", plainConfig, []Source{raw("m.embed_tokens.lora_embedding_A", "F32", "1234", 1)}, api.Unsupported,
			`tensor "m.embed_tokens.lora_embedding_A" adapts an embedding; only linear layers are supported`},
		{"dora", plainConfig, []Source{raw("m.q_proj.lora_magnitude_vector", "F32", "1234", 1)}, api.Unsupported,
			`tensor "m.q_proj.lora_magnitude_vector" belongs to DoRA, which is not supported`},
		{"whole module", plainConfig, []Source{raw("m.score.weight", "F32", "1234", 1)}, api.Unsupported,
			`tensor "m.score.weight" is not a factor of LoRA: wanted names that end in .lora_A.weight or .lora_B.weight`},
	} {
		dir := t.TempDir()
		var weights bytes.Buffer
		if err := WriteSafetensors(&weights, c.tensors, nil); err != nil {
			t.Fatal(err)
		}
		putFile(t, filepath.Join(dir, adapterConfigName), c.config)
		putFile(t, filepath.Join(dir, adapterName), weights.String())
		_, err := ReadAdapter(dir)
		if c.want != "" {
			c.want = filepath.Join(dir, adapterName) + ": " + c.want
		}
		expect(t, c.name, err, c.code, c.want)
	}
	dir := t.TempDir()
	_, err := ReadAdapter(dir)
	if api.CodeOf(err) != api.NotFound {
		t.Errorf("an empty folder: %v", err)
	}
	putFile(t, filepath.Join(dir, adapterConfigName), `{"r":0}`)
	_, err = ReadAdapter(dir)
	expect(t, "config", err, api.BadRequest, filepath.Join(dir, adapterConfigName)+": lora_alpha is missing")
	putFile(t, filepath.Join(dir, adapterConfigName), plainConfig)
	putFile(t, filepath.Join(dir, "adapter_model.bin"), "x")
	_, err = ReadAdapter(dir)
	expect(t, "old format", err, api.Unsupported, dir+": the weights are in adapter_model.bin, wanted adapter_model.safetensors; save it with a newer peft")
	putFile(t, filepath.Join(dir, adapterName), "\x02\x00\x00\x00\x00\x00\x00\x00{")
	_, err = ReadAdapter(dir)
	expect(t, "cut off", err, api.BadRequest, filepath.Join(dir, adapterName)+": header length 2, but only 1 bytes follow: the file is cut off")
}

func putFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWriteAdapterRefuses has adapters that must not become a folder.
func TestWriteAdapterRefuses(t *testing.T) {
	const A, B = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
	for _, c := range []struct {
		name   string
		change func(a *Adapter)
		want   string
	}{
		{"nan", func(a *Adapter) { a.Tensors[1].Values[0] = float32(math.NaN()) }, `tensor "` + B + `": value 0 is NaN: the file is damaged or the training diverged`},
		{"infinity", func(a *Adapter) { a.Tensors[0].Values[5] = float32(math.Inf(1)) }, `tensor "` + A + `": value 5 is +Inf: the file is damaged or the training diverged`},
		{"rank", func(a *Adapter) { a.Rank = 0 }, "rank is 0, wanted 1 to 16384"},
		{"alpha", func(a *Adapter) { a.Alpha = math.NaN() }, "alpha is NaN, wanted 0 to 1e+06"},
		{"nothing", func(a *Adapter) { a.Tensors = nil }, "there are no tensors"},
		{"alone", func(a *Adapter) { a.Tensors = a.Tensors[:1] }, `module "base_model.model.model.layers.0.self_attn.q_proj" has lora_A but not lora_B`},
		{"twice", func(a *Adapter) { a.Tensors = append(a.Tensors, a.Tensors[0]) }, `tensor "` + A + `" appears twice`},
		{"values", func(a *Adapter) { a.Tensors[0].Values = a.Tensors[0].Values[:4] }, `tensor "` + A + `" has 4 values, its shape is [2 3]`},
		{"shape", func(a *Adapter) { a.Tensors[0].Shape = []int{6} }, `tensor "` + A + `" has shape [6], wanted [rank, in] with rank 2`},
		{"prefix", func(a *Adapter) {
			a.Tensors[0].Name, a.Tensors[1].Name = "q_proj.lora_A.weight", "q_proj.lora_B.weight"
		}, `tensor "q_proj.lora_A.weight": wanted a name that begins with base_model.model.`},
		{"target", func(a *Adapter) { a.Targets = []string{"k_proj", "attn.q_proj"} }, `tensor "` + A + `": its module is not among the targets [k_proj attn.q_proj]`},
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "x")
		a := small()
		c.change(a)
		expect(t, c.name, WriteAdapter(dir, a), api.BadRequest, "write adapter "+dir+": "+c.want)
		if names := listing(t, parent); len(names) != 0 {
			t.Errorf("%s: left %v", c.name, names)
		}
	}
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	names, err := disk.System{}.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestWriteAdapterPlaces writes over what may be there, and not over what may not.
func TestWriteAdapterPlaces(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "a", "b", "adapter")
	first, second := small(), small()
	second.Alpha = 16
	second.Tensors[0].Values[0] = 100
	for _, a := range []*Adapter{first, second, first} {
		if err := WriteAdapter(dir, a); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadAdapter(dir); err != nil || got.Alpha != a.Alpha || got.Tensors[0].Values[0] != a.Tensors[0].Values[0] {
			t.Errorf("read %+v, %v", got, err)
		}
		if names := listing(t, filepath.Dir(dir)); len(names) != 1 {
			t.Errorf("left %v", names)
		}
		putFile(t, filepath.Join(dir, "README.md"), "a model card of peft does not stand in the way")
	}
	empty := t.TempDir()
	if err := WriteAdapter(empty, first); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	if first.Targets != nil {
		t.Errorf("the caller's adapter was changed: %v", first.Targets)
	}
	link := filepath.Join(parent, "link")
	if err := os.Symlink(dir, link); err == nil {
		if err := WriteAdapter(link, second); err != nil {
			t.Error(err)
		}
		if st, err := os.Lstat(link); err != nil || st.Mode()&fs.ModeSymlink == 0 {
			t.Error("the link was replaced, not what it points to")
		}
		if got, err := ReadAdapter(dir); err != nil || got.Alpha != 16 {
			t.Error("a link to the folder was not followed")
		}
	}
	putFile(t, filepath.Join(dir, "notes.txt"), "mine")
	expect(t, "foreign file", WriteAdapter(dir, first), api.BadRequest,
		"write adapter "+dir+`: it holds "notes.txt", which is not part of an adapter; wanted a new folder, an empty one, or an adapter's`)
	other := t.TempDir()
	putFile(t, filepath.Join(other, "README.md"), "mine")
	expect(t, "foreign readme", WriteAdapter(other, first), api.BadRequest,
		"write adapter "+other+`: it holds "README.md" but no adapter_config.json; wanted a new folder, an empty one, or an adapter's`)
	file := filepath.Join(other, "README.md")
	for _, dir := range []string{file, filepath.Join(file, "x")} {
		if err := WriteAdapter(dir, first); api.CodeOf(err) != api.BadRequest {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// TestReplacedWhileRead reads an adapter that is replaced all the time: config and weights belong together.
func TestReplacedWhileRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "adapter")
	write := func(alpha float64) error {
		a := small()
		a.Alpha, a.Tensors[0].Values[0] = alpha, float32(alpha)
		return WriteAdapter(dir, a)
	}
	if err := write(1); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for i := range 60 {
			if err := write(float64(i)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	read := 0
	for {
		select {
		case err := <-done:
			if err != nil || read == 0 {
				t.Errorf("%d adapters read, %v", read, err)
			}
			return
		default:
		}
		a, err := ReadAdapter(dir)
		switch {
		case err == nil && a.Tensors[0].Values[0] != float32(a.Alpha):
			t.Fatalf("alpha %v with the weights of %v", a.Alpha, a.Tensors[0].Values[0])
		case err == nil:
			read++
		case api.CodeOf(err) != api.Busy && (runtime.GOOS == "linux" || api.CodeOf(err) != api.NotFound):
			t.Fatal(err)
		}
	}
}

// failingDisk is a real disk whose call number at fails.
type failingDisk struct {
	disk.System
	at, calls int
	noSwap    bool
	err       error
	trace     []string
}

func (d *failingDisk) step(what string) error {
	d.calls++
	d.trace = append(d.trace, what)
	if d.calls == d.at {
		return &fs.PathError{Op: what, Path: "somewhere", Err: d.err}
	}
	return nil
}

func (d *failingDisk) Mkdir(name string) error {
	if err := d.step("mkdir"); err != nil {
		return err
	}
	return d.System.Mkdir(name)
}

func (d *failingDisk) Rename(from, to string) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	return d.System.Rename(from, to)
}

func (d *failingDisk) Swap(a, b string) error {
	if d.noSwap {
		return errors.ErrUnsupported
	}
	if err := d.step("swap"); err != nil {
		return err
	}
	return d.System.Swap(a, b)
}

func (d *failingDisk) SyncDir(name string) error {
	if err := d.step("syncDir"); err != nil {
		return err
	}
	return d.System.SyncDir(name)
}

func (d *failingDisk) Create(name string) (disk.File, error) {
	if err := d.step("create"); err != nil {
		return nil, err
	}
	f, err := d.System.Create(name)
	return failingFile{f, d}, err
}

type failingFile struct {
	disk.File
	d *failingDisk
}

func (f failingFile) Write(b []byte) (int, error) {
	if err := f.d.step("write"); err != nil {
		n, _ := f.File.Write(b[:len(b)/2]) // as much as fitted
		return n, err
	}
	return f.File.Write(b)
}

func (f failingFile) Sync() error {
	if err := f.d.step("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f failingFile) Close() error {
	return errors.Join(f.d.step("close"), f.File.Close())
}

// TestWriteAdapterFails makes every call to the disk fail in turn: what was there stays, and nothing
// is left beside it.
func TestWriteAdapterFails(t *testing.T) {
	for _, replace := range []bool{false, true} {
		for _, noSwap := range []bool{false, true} {
			for at := 1; ; at++ {
				parent := t.TempDir()
				dir := filepath.Join(parent, "adapter")
				if !replace {
					dir = filepath.Join(parent, "new", "adapter")
				} else if err := WriteAdapter(dir, small()); err != nil {
					t.Fatal(err)
				}
				before := listing(t, parent)
				next := small()
				next.Alpha = 16
				d := &failingDisk{at: at, noSwap: noSwap, err: syscall.ENOSPC}
				err := in("write", WriteAdapterTo(d, dir, next, true, nil))
				failed := d.calls >= at
				if !failed {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				name := fmt.Sprintf("replace %v, swap %v, call %d (%s)", replace, !noSwap, at, d.trace[at-1])
				if at == d.calls && d.trace[at-1] == "syncDir" && err == nil {
					continue // the last sync, of the parent: the adapter is in place
				}
				if err == nil || !errors.Is(err, syscall.ENOSPC) || api.CodeOf(err) != api.NoSpace || strings.Contains(err.Error(), "somewhere") {
					t.Errorf("%s: error is %v", name, err)
				}
				if names := listing(t, parent); !slices.Equal(names, before) {
					t.Errorf("%s: %v is left, want %v", name, names, before)
				}
				if got, err := ReadAdapter(dir); replace && (err != nil || got.Alpha != 8) {
					t.Errorf("%s: the old adapter: %+v, %v", name, got, err)
				}
			}
		}
	}
	d := &failingDisk{at: 3, err: syscall.ENOSPC}
	err := in("write adapter x", WriteAdapterTo(d, filepath.Join(t.TempDir(), "x"), small(), true, nil))
	expect(t, "message", err, api.NoSpace, "write adapter x: adapter_model.safetensors: "+syscall.ENOSPC.Error())
}

// TestWriteAdapterReadOnly writes below a folder that may not be written to.
func TestWriteAdapterReadOnly(t *testing.T) {
	parent := t.TempDir()
	if err := os.Chmod(parent, 0o500); err != nil {
		t.Fatal(err)
	}
	probe := filepath.Join(parent, "probe")
	if os.Mkdir(probe, 0o700) == nil {
		os.Remove(probe)
		t.Skip("this user or system may write to read-only folders")
	}
	dir := filepath.Join(parent, "x")
	expect(t, "read-only", WriteAdapter(dir, small()), api.BadRequest, "write adapter "+dir+": "+syscall.EACCES.Error())
}

// TestWriteSafetensorsRefuses has what cannot be written.
func TestWriteSafetensorsRefuses(t *testing.T) {
	one := func(name string, shape ...int) Source { return Floats(name, shape, []float32{1}) }
	for _, c := range []struct {
		name    string
		tensors []Source
		want    string
	}{
		{"good", []Source{one("a", 1), one("b")}, ""},
		{"twice", []Source{one("a", 1), one("a", 1)}, `tensor "a": appears twice`},
		{"reserved", []Source{one("__metadata__", 1)}, `tensor "__metadata__": cannot be the name of a tensor`},
		{"not utf-8", []Source{one("\xff", 1)}, `tensor "\xff": cannot be the name of a tensor`},
		{"negative", []Source{one("a", -1)}, `tensor "a": shape is [-1], wanted sizes from 0`},
		{"rank", []Source{one("a", 1, 1, 1, 1, 1, 1, 1, 1, 1)}, `tensor "a": shape has 9 dimensions, wanted at most 8`},
		{"short", []Source{one("a", 2)}, `tensor "a": 4 bytes were written, wanted 8 for F32[2]`},
		{"huge", []Source{one("a", 1<<31, 1<<31)}, `tensor "a": shape [2147483648 2147483648] is too large`},
	} {
		var b bytes.Buffer
		err := WriteSafetensors(&b, c.tensors, nil)
		expect(t, c.name, err, api.BadRequest, c.want)
		if err == nil {
			if h, err := parseSafetensors(b.Bytes()); err != nil || len(h.tensors) != len(c.tensors) {
				t.Errorf("%s: read back: %v", c.name, err)
			}
		}
	}
}
