package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
)

var update = flag.Bool("update", false, "write what the engine answers into testdata/cases.json")

// table is testdata/cases.json: operations with the lines that every door must answer, floats by their bits. Its operations are
// run in order, each case on what the cases before it left.
type table struct {
	About     []string `json:"about"`
	Device    string   `json:"device"`
	Tokenizer string   `json:"tokenizer"`
	Cases     []*step  `json:"cases"`
}

// step is one operation. Which fields count depends on Op.
type step struct {
	Name string `json:"name"`
	Op   string `json:"op"`

	BaseModel  string             `json:"base_model,omitempty"`
	Lora       *api.LoraConfig    `json:"lora_config,omitempty"`
	Data       []datum            `json:"data,omitempty"`
	LossFn     string             `json:"loss_fn,omitempty"`
	LossConfig map[string]float64 `json:"loss_fn_config,omitempty"`
	Weights    [][]float32        `json:"hold_weights,omitempty"`
	Adam       *api.AdamParams    `json:"adam_params,omitempty"`

	Prompt             []int32             `json:"prompt,omitempty"`
	Params             *api.SamplingParams `json:"sampling_params,omitempty"`
	StopTokens         []int32             `json:"stop_tokens,omitzero"`
	NumSamples         int                 `json:"num_samples,omitempty"`
	PromptLogProbs     bool                `json:"prompt_logprobs,omitempty"`
	TopKPromptLogProbs int                 `json:"topk_prompt_logprobs,omitempty"`

	Path      string          `json:"name_of_state,omitempty"`
	Optimizer bool            `json:"optimizer,omitempty"`
	Text      string          `json:"text,omitempty"`
	Tokens    []int32         `json:"tokens,omitempty"`
	Special   bool            `json:"special,omitempty"`
	Request   json.RawMessage `json:"request,omitempty"`

	Want []string `json:"want"`
}

type datum struct {
	Tokens []int32           `json:"tokens"`
	Inputs map[string]tensor `json:"loss_fn_inputs"`
}

type tensor struct {
	DType string    `json:"dtype"` // float32, int32, int64
	Shape []int     `json:"shape"`
	Data  []float64 `json:"data"`
	CRow  []int64   `json:"sparse_crow_indices,omitempty"`
	Cols  []int64   `json:"sparse_col_indices,omitempty"`
}

func readTable(t *testing.T) *table {
	t.Helper()
	text, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var tab table
	if err := d.Decode(&tab); err != nil {
		t.Fatal(err)
	}
	return &tab
}

func hex32(v float32) string { return fmt.Sprintf("%08x", math.Float32bits(v)) }
func hex64(v float64) string { return fmt.Sprintf("%016x", math.Float64bits(v)) }

// goDoor runs the operations through the Go API.
type goDoor struct {
	t       *testing.T
	engine  *engine.Engine
	session *engine.Session
	facts   *local.Facts
	run     *engine.Run
	sampler *engine.Sampler
	lines   []string
}

func openDoor(t *testing.T, tab *table, device string) *goDoor {
	t.Helper()
	e, err := local.Open(t.Context(), local.Options{Device: device})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	facts, err := local.Models{}.Facts(tab.Tokenizer)
	if err != nil {
		t.Fatal(err)
	}
	return &goDoor{t: t, engine: e, session: e.NewSession(), facts: facts}
}

func (d *goDoor) say(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// names are the statuses of the C interface for the engine's codes.
var names = map[api.Code]string{
	api.BadRequest: "TINKER_ERR_BAD_REQUEST", api.NotFound: "TINKER_ERR_NOT_FOUND", api.Unsupported: "TINKER_ERR_UNSUPPORTED",
}

func (d *goDoor) failed(err error) bool {
	if err == nil {
		return false
	}
	var e *api.Error
	if !errors.As(err, &e) {
		d.t.Errorf("no api.Error: %v", err)
	}
	d.say("error %s %s", names[api.CodeOf(err)], err)
	return true
}

// await waits for a future and reports its error.
func await[T any](d *goDoor, f *engine.Future[T], err error) (v T, ok bool) {
	if !d.failed(err) {
		v, err = f.Wait(context.Background())
		ok = !d.failed(err)
	}
	return v, ok
}

func (d *goDoor) output(o api.ForwardBackwardOutput) {
	for i, x := range o.LossFnOutputs {
		t := x["logprobs"]
		columns := 0
		if len(t.Shape) == 2 {
			columns = t.Shape[1]
		}
		line := fmt.Sprintf("logprobs %d columns %d", i, columns)
		for _, v := range t.Floats {
			line += " " + hex32(v)
		}
		d.say("%s", line)
	}
	for _, k := range slices.Sorted(maps.Keys(o.Metrics)) {
		d.say("metric %s %s", k, hex64(o.Metrics[k]))
	}
}

func (d *goDoor) samples(o api.SampleOutput) {
	for i, s := range o.Sequences {
		line := fmt.Sprintf("sequence %d %s", i, s.StopReason)
		for j, id := range s.Tokens {
			line += fmt.Sprintf(" %d %s %s", id, hex32(s.LogProbs[j]), hex32(s.RawLogProbs[j]))
		}
		d.say("%s", line)
	}
	if o.PromptLogProbs != nil {
		line := "prompt"
		for _, v := range o.PromptLogProbs {
			if v == v {
				line += " " + hex32(v)
			} else {
				line += " none"
			}
		}
		d.say("%s", line)
	}
	for i, list := range o.TopKPromptLogProbs {
		line := fmt.Sprintf("topk %d", i)
		for _, x := range list {
			line += fmt.Sprintf(" %d %s", x.Token, hex32(x.LogProb))
		}
		d.say("%s", line)
	}
}

func (d *goDoor) data(s *step) []api.Datum {
	var out []api.Datum
	for _, x := range s.Data {
		inputs := map[string]api.TensorData{}
		for name, v := range x.Inputs {
			var t api.TensorData
			for _, f := range v.Data {
				if v.DType == "float32" {
					t.Floats = append(t.Floats, float32(f))
				} else {
					t.Ints = append(t.Ints, int64(f))
				}
			}
			t.Shape = v.Shape
			if v.CRow != nil {
				var err error
				if t, err = api.FromCSR(t.Floats, nil, v.CRow, v.Cols, v.Shape[0], v.Shape[1]); err != nil {
					d.t.Fatal(err)
				}
			}
			inputs[name] = t
		}
		out = append(out, api.Datum{ModelInput: api.FromInts(x.Tokens), LossInputs: inputs})
	}
	return out
}

// do runs one operation and returns the lines that it gives.
func (d *goDoor) do(s *step) []string {
	d.lines = []string{}
	switch s.Op {
	case "create_run":
		if d.run != nil {
			d.run.Close()
		}
		f, err := d.session.NewRun(api.CreateModelRequest{BaseModel: s.BaseModel, Lora: *s.Lora})
		if r, ok := await(d, f, err); ok {
			d.run = r
			d.say("run")
		}
	case "forward", "forward_backward":
		submit := d.run.Forward
		if s.Op == "forward_backward" {
			submit = d.run.ForwardBackward
		}
		f, err := submit(api.ForwardBackwardInput{Data: d.data(s), LossFn: s.LossFn, LossConfig: s.LossConfig})
		if o, ok := await(d, f, err); ok {
			d.output(o)
		}
	case "hold":
		f, err := d.run.Hold(d.data(s))
		if h, ok := await(d, f, err); ok {
			var o api.ForwardBackwardOutput
			for i, lp := range h.LogProbs() {
				o.LossFnOutputs = append(o.LossFnOutputs, map[string]api.TensorData{"logprobs": {Floats: lp, Shape: h.Shapes()[i]}})
			}
			d.output(o)
			b, err := h.Backward(s.Weights)
			if o, ok := await(d, b, err); ok {
				d.output(o)
			}
		}
	case "optim_step":
		f, err := d.run.OptimStep(*s.Adam)
		if o, ok := await(d, f, err); ok {
			d.output(api.ForwardBackwardOutput{Metrics: o.Metrics})
		}
	case "sampler":
		submit := d.run.SaveForSampler
		if s.BaseModel != "" {
			submit = func() (*engine.Future[*engine.Sampler], error) { return d.session.NewSampler(s.BaseModel) }
		}
		f, err := submit()
		if p, ok := await(d, f, err); ok {
			d.sampler = p
			d.say("sampler")
		}
	case "sample":
		p := *s.Params
		p.StopTokens = s.StopTokens
		f, err := d.sampler.Sample(context.Background(), api.SampleRequest{
			Prompt: api.FromInts(s.Prompt), Params: p, NumSamples: s.NumSamples, PromptLogProbs: s.PromptLogProbs, TopKPromptLogProbs: s.TopKPromptLogProbs,
		})
		if o, ok := await(d, f, err); ok {
			d.samples(o)
		}
	case "compute_logprobs":
		f, err := d.sampler.ComputeLogProbs(context.Background(), api.FromInts(s.Prompt))
		if o, ok := await(d, f, err); ok {
			d.samples(api.SampleOutput{PromptLogProbs: o})
		}
	case "save_state":
		f, err := d.run.SaveState(s.Path, api.SaveOptions{})
		if c, ok := await(d, f, err); ok {
			d.say("checkpoint %s", c.SHA256)
		}
	case "load_state":
		load := d.run.LoadState
		if s.Optimizer {
			load = d.run.LoadStateWithOptimizer
		}
		f, err := load("tinker://" + d.run.ID() + "/weights/" + s.Path)
		if c, ok := await(d, f, err); ok {
			d.say("checkpoint %s", c.SHA256)
		}
	case "encode":
		ids, err := d.facts.Tokenizer.TryEncode(s.Text, s.Special)
		if !d.failed(err) {
			d.say("ids%s", spaced(ids))
		}
	case "decode":
		line := "bytes"
		for _, b := range []byte(d.facts.Tokenizer.Decode(s.Tokens, s.Special)) {
			line += fmt.Sprintf(" %02x", b)
		}
		d.say("%s", line)
	case "render":
		var q struct {
			Messages []chat.Message `json:"messages"`
			Format   string         `json:"format"`
			Generate bool           `json:"generate"`
			TrainOn  chat.TrainOn   `json:"train_on"`
		}
		if err := json.Unmarshal(s.Request, &q); err != nil {
			d.t.Fatal(err)
		}
		format, err := chat.ByName(q.Format)
		if d.failed(err) {
			break
		}
		segments, err := format.Render(q.Messages, chat.Options{Generate: q.Generate, Train: q.TrainOn, BOS: d.facts.BOS, EOS: d.facts.EOS})
		if d.failed(err) {
			break
		}
		ids, trained, err := chat.Tokens(d.facts.Tokenizer, segments)
		if d.failed(err) {
			break
		}
		d.say("ids%s", spaced(ids))
		line := "trained"
		for _, b := range trained {
			line += " " + map[bool]string{true: "1", false: "0"}[b]
		}
		d.say("%s", line)
	default:
		d.t.Fatalf("case %s: no operation %q", s.Name, s.Op)
	}
	return d.lines
}

// pinned leaves what the table pins: of an error the status, and not what a plugin's host measures. The doors must agree about these, too.
func pinned(lines []string) []string {
	out := []string{}
	for _, line := range lines {
		switch {
		case strings.HasPrefix(line, "metric plugin/"):
			continue
		case strings.HasPrefix(line, "error "):
			line = strings.Join(strings.Fields(line)[:2], " ")
		}
		out = append(out, line)
	}
	return out
}

func spaced[T any](list []T) string {
	var b strings.Builder
	for _, v := range list {
		fmt.Fprintf(&b, " %v", v)
	}
	return b.String()
}

// script is the operation in the lines that testdata/door.c reads.
func script(s *step) string {
	var b strings.Builder
	bit := func(v bool) int {
		if v {
			return 1
		}
		return 0
	}
	list := func(ids []int32) string { return fmt.Sprint(len(ids)) + spaced(ids) }
	if s.Data != nil {
		b.WriteString("clear\n")
		for _, x := range s.Data {
			fmt.Fprintf(&b, "datum %s\n", list(x.Tokens))
			for _, name := range slices.Sorted(maps.Keys(x.Inputs)) {
				v := x.Inputs[name]
				if v.CRow != nil {
					fmt.Fprintf(&b, "csr %s %d %d %d%s%s", name, v.Shape[0], v.Shape[1], len(v.Cols), spaced(v.CRow), spaced(v.Cols))
				} else {
					fmt.Fprintf(&b, "tensor %s %s %d%s", name, map[string]string{"float32": "f", "int32": "i", "int64": "l"}[v.DType], len(v.Shape), spaced(v.Shape))
				}
				for _, f := range v.Data {
					if v.DType == "float32" {
						b.WriteString(" " + hex32(float32(f)))
					} else {
						b.WriteString(" " + strconv.FormatInt(int64(f), 10))
					}
				}
				b.WriteString("\n")
			}
		}
	}
	switch s.Op {
	case "create_run":
		l := s.Lora
		fmt.Fprintf(&b, "create_run %s %d %d %d %d %d", s.BaseModel, l.Rank, *l.Seed, bit(l.TrainAttn), bit(l.TrainMLP), bit(l.TrainUnembed))
	case "forward", "forward_backward":
		fmt.Fprintf(&b, "%s %s %d", s.Op, s.LossFn, len(s.LossConfig))
		for _, k := range slices.Sorted(maps.Keys(s.LossConfig)) {
			fmt.Fprintf(&b, " %s %s", k, hex64(s.LossConfig[k]))
		}
	case "hold":
		var all []float32
		for _, w := range s.Weights {
			all = append(all, w...)
		}
		fmt.Fprintf(&b, "hold %d", len(all))
		for _, w := range all {
			b.WriteString(" " + hex32(w))
		}
	case "optim_step":
		a := s.Adam
		b.WriteString("optim_step")
		for _, v := range []float64{a.LearningRate, a.Beta1, a.Beta2, a.Eps, a.WeightDecay, a.GradClipNorm} {
			b.WriteString(" " + hex64(v))
		}
	case "sampler":
		b.WriteString("sampler " + s.BaseModel)
	case "sample":
		p := s.Params
		fmt.Fprintf(&b, "sample %d %d %d %s %d %s %d %d %d %s %s", s.NumSamples, p.MaxTokens, *p.Seed, hex64(p.Temperature), p.TopK, hex64(p.TopP),
			bit(s.PromptLogProbs), s.TopKPromptLogProbs, bit(s.StopTokens != nil && len(s.StopTokens) == 0), list(s.StopTokens), list(s.Prompt))
	case "compute_logprobs":
		b.WriteString("compute_logprobs " + list(s.Prompt))
	case "save_state":
		b.WriteString("save_state " + s.Path)
	case "load_state":
		fmt.Fprintf(&b, "load_state %d %s", bit(s.Optimizer), s.Path)
	case "encode":
		fmt.Fprintf(&b, "encode %d %s", bit(s.Special), escaped(s.Text))
	case "decode":
		fmt.Fprintf(&b, "decode %d %s", bit(s.Special), list(s.Tokens))
	case "render":
		var flat bytes.Buffer
		_ = json.Compact(&flat, s.Request)
		b.WriteString("render " + escaped(flat.String()))
	}
	return b.String() + "\n"
}

func escaped(s string) string { return strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(s) }

// TestCases runs the table through the Go API and, where there is a C compiler, through the C interface: on the portable device every line
// must be the one in the table, on this machine's best one the two must agree.
func TestCases(t *testing.T) {
	tab := readTable(t)
	for _, device := range []string{tab.Device, "cpu"} {
		t.Run(device, func(t *testing.T) {
			goDoor := openDoor(t, tab, device)
			got := map[string][]string{}
			for _, s := range tab.Cases {
				lines := goDoor.do(s)
				got[s.Name] = lines
				if device != tab.Device {
					continue
				}
				if lines = pinned(lines); *update {
					s.Want = lines
				} else if !slices.Equal(lines, s.Want) {
					t.Errorf("%s: Go API:\n%s\nwanted\n%s", s.Name, strings.Join(lines, "\n"), strings.Join(s.Want, "\n"))
				}
			}
			if len(got) != len(tab.Cases) {
				t.Fatal("two cases have one name")
			}
			t.Run("C", func(t *testing.T) {
				in := fmt.Sprintf("engine %s\ntokenizer %s\n", device, tab.Tokenizer)
				for _, s := range tab.Cases {
					in += "case " + s.Name + "\n" + script(s)
				}
				out := run(t, []byte(in), nil, compile(t, "testdata/door.c", sanitizer(t)...))
				name, fromC := "", map[string][]string{}
				for _, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
					if rest, ok := strings.CutPrefix(line, "case "); ok {
						name = rest
						continue
					}
					fromC[name] = append(fromC[name], line)
				}
				for _, s := range tab.Cases {
					if !slices.Equal(fromC[s.Name], got[s.Name]) {
						t.Errorf("%s: C:\n%s\nGo API:\n%s", s.Name, strings.Join(fromC[s.Name], "\n"), strings.Join(got[s.Name], "\n"))
					}
				}
			})
		})
	}
	if *update {
		text, err := json.MarshalIndent(tab, "", " ")
		if err == nil {
			err = os.WriteFile("testdata/cases.json", append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
