package hf

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/kernels"
)

// File names of a PEFT adapter folder.
const (
	adapterName       = "adapter_model.safetensors"
	adapterConfigName = "adapter_config.json"
)

// Adapter is a LoRA adapter as PEFT (huggingface/peft) keeps it: y = W·x + Scale()·B·(A·x), with A and B
// stored unscaled.
type Adapter struct {
	BaseModel string // name or path of the base model; may be empty
	Revision  string // of the base model; may be empty
	Rank      int
	Alpha     float64
	RSLoRA    bool     // Scale is Alpha/√Rank, not Alpha/Rank
	Targets   []string // module names, such as "q_proj"; ConfigText takes those of Tensors when there are none
	Tensors   []AdapterTensor

	// BaseLayers names frozen weights of the base that the adapter's file holds beside the factors, as
	// PEFT does when lm_head is a target. ReadAdapter does not read them; WriteAdapter writes none.
	BaseLayers []string

	// Saved are weights that stand in the place of the base's, by the names of their modules ("lm_head"): PEFT's modules_to_save.
	// WriteAdapter writes them; an adapter that has any is refused by ReadAdapter.
	Saved map[string]Source `json:"-"`
}

// AdapterTensor is one factor under its PEFT name, such as
// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight". A is [rank, in], B is [out, rank].
//
// Experts have three-dimensional factors, as the Tinker service writes them: "….mlp.experts.w1.lora_A.weight" [1, rank, in] is shared by all
// experts and "….w1.lora_B.weight" [experts, out, rank] is their own; w3 (up) as w1 (gate); of w2 (down) A is [experts, rank, in] and B
// [1, out, rank]. PEFT itself has no such adapters.
type AdapterTensor struct {
	Name   string
	Shape  []int
	Values []float32 // row-major

	// Stored is the tensor in its file, instead of Values, in what OpenAdapter returns. It is valid until Close.
	Stored Tensor `json:"-"`
	// Stream writes the values as little-endian float32, instead of Values, in what is given to WriteAdapter: an adapter need not
	// be in memory. It is called once.
	Stream func(w io.Writer) error `json:"-"`
}

// Scale is the factor of B·A.
func (a *Adapter) Scale() float64 {
	if a.RSLoRA {
		return a.Alpha / math.Sqrt(float64(a.Rank))
	}
	return a.Alpha / float64(a.Rank)
}

// ReadAdapter reads a PEFT adapter folder. Tensors may be stored as F32, F16 or BF16; they come back as
// float32, in the order of their names. What is not plain LoRA on linear layers is refused by name
// (Unsupported), and so is everything damaged or contradictory (BadRequest): a rank other than the
// config's, a factor without its partner, a NaN.
//
// An adapter that WriteAdapter replaces meanwhile is read again: config and weights are of one adapter.
func ReadAdapter(dir string) (*Adapter, error) {
	a, closeFile, err := OpenAdapter(dir)
	if err != nil {
		return nil, err
	}
	defer closeFile()
	for i := range a.Tensors {
		t := &a.Tensors[i]
		t.Values, t.Stored = t.Stored.Float32s(), Tensor{}
	}
	return a, nil
}

// OpenAdapter is ReadAdapter without reading the values: they stay in the mapped file, in Stored, until closeFile is called. They have been
// looked at once, for NaN.
func OpenAdapter(dir string) (a *Adapter, closeFile func() error, err error) {
	for range 10 {
		a, f, same, err := openSettled(dir)
		if same && err != nil {
			return nil, nil, err
		}
		if same {
			return a, f.Close, nil
		}
		if f != nil {
			_ = f.Close()
		}
	}
	return nil, nil, api.Errorf(api.Busy, "%s: it is replaced again and again while it is read", dir)
}

// openSettled opens the adapter and tells whether dir was one and the same folder meanwhile. The folder is held
// open, so that the system cannot give its identity to the one that replaces it.
func openSettled(dir string) (a *Adapter, f *File, same bool, err error) {
	held, err := os.Open(dir)
	if err != nil {
		return nil, nil, true, in(dir, disk.Error(err))
	}
	defer held.Close()
	before, err := held.Stat()
	if err != nil {
		return nil, nil, true, in(dir, disk.Error(err))
	}
	if !before.IsDir() {
		return nil, nil, true, bad("%s: is a file, wanted a folder with an %s", dir, adapterConfigName)
	}
	a, f, err = openAdapter(dir)
	after, gone := os.Stat(dir)
	return a, f, gone == nil && os.SameFile(before, after), err
}

func openAdapter(dir string) (*Adapter, *File, error) {
	text, err := readFile(os.DirFS(dir), adapterConfigName, maxConfigBytes)
	if err != nil {
		return nil, nil, in(filepath.Join(dir, adapterConfigName), err)
	}
	a, err := parseAdapterConfig(text)
	if err != nil {
		return nil, nil, in(filepath.Join(dir, adapterConfigName), err)
	}
	f, err := openFile(dir, adapterName)
	if err != nil {
		if _, old := os.Stat(filepath.Join(dir, "adapter_model.bin")); old == nil && api.CodeOf(err) == api.NotFound {
			return nil, nil, unsupported("%s: the weights are in adapter_model.bin, wanted %s; save it with a newer peft", dir, adapterName)
		}
		return nil, nil, in(filepath.Join(dir, adapterName), err)
	}
	if err := a.take(f.Tensors); err != nil {
		_ = f.Close()
		return nil, nil, in(filepath.Join(dir, adapterName), err)
	}
	return a, f, nil
}

// NewAdapter makes an adapter of the text of adapter_config.json and the tensors of a file, as OpenAdapter does.
func NewAdapter(config []byte, f *File) (*Adapter, error) {
	a, err := parseAdapterConfig(config)
	if err != nil {
		return nil, in(adapterConfigName, err)
	}
	return a, in(adapterName, a.take(f.Tensors))
}

// take fills Tensors and BaseLayers from a file's tensors, and Targets where the config gave a pattern.
func (a *Adapter) take(tensors []Tensor) error {
	for _, t := range tensors {
		if _, _, err := factor(t.Name); err != nil {
			if strings.HasSuffix(t.Name, ".base_layer.weight") {
				a.BaseLayers = append(a.BaseLayers, t.Name)
				continue
			}
			return err
		}
		if t.DType != kernels.F32 && t.DType != kernels.BF16 && t.DType != kernels.F16 {
			return unsupported("tensor %s is %s, wanted F32, BF16 or F16", quote(t.Name), t.Stored)
		}
		a.Tensors = append(a.Tensors, AdapterTensor{Name: t.Name, Shape: t.Shape, Stored: t})
	}
	slices.SortFunc(a.Tensors, func(x, y AdapterTensor) int { return strings.Compare(x.Name, y.Name) })
	slices.Sort(a.BaseLayers)
	if len(a.Targets) == 0 {
		a.Targets = targets(a.Tensors)
	}
	return a.check()
}

// Float32s returns the values of an F32, BF16 or F16 tensor, widened exactly, and nil for another type.
func (t Tensor) Float32s() []float32 {
	at := t.float()
	if at == nil {
		return nil
	}
	out := make([]float32, len(t.Data)/t.DType.Size())
	for i := range out {
		out[i] = at(i)
	}
	return out
}

// float gives single values of an F32, BF16 or F16 tensor; it is nil for another type.
func (t Tensor) float() func(i int) float32 {
	le := binary.LittleEndian
	switch t.DType {
	case kernels.F32:
		return func(i int) float32 { return math.Float32frombits(le.Uint32(t.Data[4*i:])) }
	case kernels.BF16:
		return func(i int) float32 { return kernels.BF16ToF32(le.Uint16(t.Data[2*i:])) }
	case kernels.F16:
		return func(i int) float32 { return kernels.F16ToF32(le.Uint16(t.Data[2*i:])) }
	}
	return nil
}

// factor splits a tensor's name into the module's path and "A" or "B".
func factor(name string) (module, which string, err error) {
	for _, which := range []string{"A", "B"} {
		if module, ok := strings.CutSuffix(name, ".lora_"+which+".weight"); ok {
			return module, which, nil
		}
	}
	switch {
	case strings.Contains(name, ".lora_embedding_"):
		return "", "", unsupported("tensor %s adapts an embedding; only linear layers are supported", quote(name))
	case strings.Contains(name, ".lora_magnitude_vector"):
		return "", "", unsupported("tensor %s belongs to DoRA, which is not supported", quote(name))
	}
	return "", "", unsupported("tensor %s is not a factor of LoRA: wanted names that end in .lora_A.weight or .lora_B.weight", quote(name))
}

// check holds the tensors against the rank and each other.
func (a *Adapter) check() error {
	if a.Rank < 1 || a.Rank > maxAdapterRank {
		return bad("rank is %d, wanted 1 to %d", a.Rank, maxAdapterRank)
	}
	if !(a.Alpha >= 0 && a.Alpha <= maxAlpha) {
		return bad("alpha is %v, wanted 0 to %g", a.Alpha, float64(maxAlpha))
	}
	if len(a.Tensors) == 0 {
		return bad("there are no tensors")
	}
	factors := map[string]int{} // bit 0: A, bit 1: B
	for _, t := range a.Tensors {
		module, which, err := factor(t.Name)
		if err != nil {
			return err
		}
		bit := 1
		if which == "B" {
			bit = 2
		}
		if factors[module]&bit != 0 {
			return bad("tensor %s appears twice", quote(t.Name))
		}
		factors[module] |= bit
		if err := t.shaped(module, which, a.Rank); err != nil {
			return err
		}
		if err := t.finite(); err != nil {
			return in("tensor "+quote(t.Name), err)
		}
	}
	for _, t := range a.Tensors { // in their order, so that the message does not depend on the map's
		module, _, _ := factor(t.Name)
		if have := factors[module]; have != 3 {
			return bad("module %s has lora_%c but not lora_%c", quote(module), " AB"[have], " BA"[have])
		}
	}
	return nil
}

// shaped checks the shape of a factor of module.
func (t *AdapterTensor) shaped(module, which string, rank int) error {
	dims, wanted := t.Shape, ""
	if name, ok := strings.CutPrefix(module[strings.LastIndex(module, ".experts.")+1:], "experts."); ok && slices.Contains(expertModules, name) && len(dims) == 3 {
		own := "B"
		if name == "w2" {
			own = "A"
		}
		wanted = "1, "
		if which == own {
			wanted = "experts, "
		}
		if dims[0] < 1 || which != own && dims[0] != 1 {
			dims = nil
		} else {
			dims = dims[1:]
		}
	}
	dim, shape := 0, "["+wanted+"rank, in]"
	if which == "B" {
		dim, shape = 1, "["+wanted+"out, rank]"
	}
	if len(dims) != 2 || dims[dim] != rank || dims[1-dim] < 1 {
		return bad("tensor %s has shape %v, wanted %s with rank %d", quote(t.Name), t.Shape, shape, rank)
	}
	if t.Values == nil && (t.Stream != nil || t.Stored.DType != 0) {
		return nil // of a stream, which is checked when it is written, or of a file, which has been
	}
	rest := len(t.Values)
	for _, d := range t.Shape {
		if d < 1 || rest%d != 0 {
			rest = 0
			break
		}
		rest /= d
	}
	if rest != 1 {
		return bad("tensor %s has %d values, its shape is %v", quote(t.Name), len(t.Values), t.Shape)
	}
	return nil
}

// finite looks for NaN and infinities. It allocates nothing.
func (t *AdapterTensor) finite() error {
	n := len(t.Values)
	at := func(i int) float32 { return t.Values[i] }
	if stored := t.Stored.float(); t.Values == nil && stored != nil {
		n, at = t.Stored.Len(), stored
	}
	for i := range n {
		if v := at(i); v-v != 0 {
			return bad("value %d is %v: the file is damaged or the training diverged", i, v)
		}
	}
	return nil
}

// expertModules are the last path components of modules whose factors may have three dimensions.
var expertModules = []string{"w1", "w2", "w3"}

// targets returns the last path components of the adapted modules, sorted.
func targets(tensors []AdapterTensor) []string {
	var out []string
	for _, t := range tensors {
		module, _, _ := factor(t.Name)
		out = append(out, module[strings.LastIndexByte(module, '.')+1:])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// covered refuses a tensor that PEFT would not look at, because no target names its module.
func (a *Adapter) covered() error {
	for _, t := range a.Tensors {
		module, _, err := factor(t.Name)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(module, peftRoot) {
			return bad("tensor %s: wanted a name that begins with %s", quote(t.Name), peftRoot)
		}
		path := strings.TrimPrefix(module, peftRoot)
		if len(a.Targets) > 0 && !slices.ContainsFunc(a.Targets, func(target string) bool {
			return path == target || strings.HasSuffix(path, "."+target)
		}) {
			return bad("tensor %s: its module is not among the targets %s", quote(t.Name), clip(fmt.Sprint(a.Targets)))
		}
	}
	return nil
}

// peftRoot is what PEFT puts before the path of every module.
const peftRoot = "base_model.model."
