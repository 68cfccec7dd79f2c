package plugins

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// metaCases are metadata that is refused, each with what is wrong.
var metaCases = []struct{ text, want string }{
	{``, "0 bytes"},
	{`{`, "EOF"},
	{`[]`, "cannot unmarshal array"},
	{`{"name":"a","version":"1"} {}`, "goes on after the object"},
	{"{\"name\":\"a\xff\",\"version\":\"1\"}", "not UTF-8"},
	{`{"version":"1"}`, `name ""`},
	{`{"name":"a b","version":"1"}`, `name "a b"`},
	{`{"name":"a"}`, `version ""`},
	{`{"name":"a","version":"1\n"}`, `version "1\n"`},
	{`{"name":"a","version":"1","name":"b"}`, "name is repeated"},
	{`{"Name":"a","version":"1"}`, "name Name is repeated or not in small letters"},
	{`{"name":"a","version":"1","inputs":null}`, "null is no value"},
	{`{"name":"a","version":"1","scop":"datum"}`, `unknown field "scop"`},
	{`{"name":"a","version":"1","scope":"token"}`, `scope "token"`},
	{`{"name":"a","version":"1","scope":"group"}`, "needs a grouping"},
	{`{"name":"a","version":"1","scope":"datum","grouping":{"by":"consecutive","size":2}}`, "has no grouping"},
	{`{"name":"a","version":"1","scope":"group","grouping":{"by":"consecutive"}}`, "needs a size"},
	{`{"name":"a","version":"1","scope":"group","grouping":{"by":"input","name":"g"}}`, "needs the name of a declared input"},
	{`{"name":"a","version":"1","scope":"group","grouping":{"by":"input","name":"g"},"inputs":[{"name":"g","dtype":"int64","shape":[1],"optional":true}]}`, "not optional"},
	{`{"name":"a","version":"1","scope":"group","grouping":{"by":"moon"}}`, `grouping by "moon"`},
	{`{"name":"a","version":"1","inputs":[{"name":"$logprobs","dtype":"float32"}]}`, `input 0: name "$logprobs"`},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float64"}]}`, `dtype "float64"`},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32","like":"y"}]}`, `like "y"`},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32","like":"logprobs","shape":[1]}]}`, "both like and shape"},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32","shape":[]}]}`, "one or two dimensions"},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32","shape":[-1]}]}`, "shape [-1]"},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32","shape":[1e99]}]}`, "cannot unmarshal number"},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32"},{"name":"x","dtype":"int64"}]}`, "declared twice"},
	{`{"name":"a","version":"1","inputs":[{"name":"target_tokens","dtype":"int64","like":"logprobs","optional":true}]}`, "always there"},
	{`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32","opional":true}]}`, `unknown field "opional"`},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"string"}]}`, `type "string"`},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"number","min":2,"max":1}]}`, "min 2 is above max 1"},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"number","min":2,"default":1}]}`, "default: x is 1, wanted at least 2"},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"bool","default":0.5}]}`, "wanted 0 or 1"},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"enum"}]}`, "0 values"},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"enum","values":["a","b"],"default":2}]}`, "wanted a whole number from 0 (a) to 1 (b)"},
	{`{"name":"a","version":"1","params":[{"name":"x","type":"number"},{"name":"x","type":"number"}]}`, "declared twice"},
	{`{"name":"a","version":"1","metrics":["loss:sum"]}`, "the host's own"},
	{`{"name":"a","version":"1","metrics":["a:b:c"]}`, `metric "a:b:c"`},
	{`{"name":"a","version":"1","min_memory_pages":65537}`, "min_memory_pages is 65537"},
	{`{"name":"a","version":"1","inputs":[[[[[[[[]]]]]]]]}`, "nested too deeply"},
}

func TestMetadata(t *testing.T) {
	for _, c := range metaCases {
		if m, err := parseMeta([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v, wanted %q", c.text, m, err, c.want)
		}
	}
	many := `{"name":"a","version":"1","metrics":[` + strings.Repeat(`"x",`, 64) + `"x"]}`
	if _, err := parseMeta([]byte(many)); err == nil || !strings.Contains(err.Error(), "65 metrics") {
		t.Error(err)
	}
	m, err := parseMeta([]byte(`{"name":"a","version":"1","inputs":[{"name":"x","dtype":"float32"}]}`))
	if err != nil || m.Scope != ScopeBatch {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestInputsAreChecked: what does not fit the metadata is refused before the model runs, with datum and place.
func TestInputsAreChecked(t *testing.T) {
	m := must(parseMeta([]byte(`{"name":"p","version":"1","scope":"group","grouping":{"by":"consecutive","size":2},"inputs":[
		{"name":"w","dtype":"float32","like":"logprobs"},{"name":"margin","dtype":"float32","shape":[1],"optional":true},{"name":"free","dtype":"int64","optional":true}],
		"params":[{"name":"beta","type":"number","min":0,"max":1},{"name":"on","type":"bool","default":1},{"name":"mode","type":"enum","values":["a","b"],"default":1}]}`)))
	good := func() []api.Datum {
		d := func() api.Datum {
			return api.Datum{LossInputs: map[string]api.TensorData{
				"target_tokens": api.Ints([]int64{1, 2, 3}), "w": api.Floats([]float32{1, 1, 1}), "margin": api.Floats([]float32{1}),
			}}
		}
		return []api.Datum{d(), d()}
	}
	beta := map[string]float64{"beta": 0.5}
	for _, c := range []struct {
		want   string
		config map[string]float64
		edit   func(d []api.Datum) []api.Datum
	}{
		{"", beta, nil},
		{"", beta, func(d []api.Datum) []api.Datum { delete(d[1].LossInputs, "margin"); return d }},
		{"", beta, func(d []api.Datum) []api.Datum {
			d[1].LossInputs["margin"] = api.TensorData{Floats: []float32{1}, Shape: []int{}}
			return d
		}},
		{"", beta, func(d []api.Datum) []api.Datum {
			d[0].LossInputs["free"] = api.TensorData{Ints: make([]int64, 6), Shape: []int{2, 3}}
			return d
		}},
		{`loss_fn_config: p needs "beta"; it has no default`, nil, nil},
		{`loss_fn_config: p does not know "Beta", wanted beta, on, mode`, map[string]float64{"Beta": 1}, nil},
		{"beta is 2, wanted at most 1", map[string]float64{"beta": 2}, nil},
		{"beta is NaN, wanted a finite number", map[string]float64{"beta": math.NaN()}, nil},
		{"on is 2, wanted 0 or 1", map[string]float64{"beta": 1, "on": 2}, nil},
		{"mode is 0.5, wanted a whole number from 0 (a) to 1 (b)", map[string]float64{"beta": 1, "mode": 0.5}, nil},
		{"the batch is empty", beta, func([]api.Datum) []api.Datum { return nil }},
		{"the batch has 1 datums, p takes them 2 at a time", beta, func(d []api.Datum) []api.Datum { return d[:1] }},
		{"datum 1: target_tokens is missing", beta, func(d []api.Datum) []api.Datum { delete(d[1].LossInputs, "target_tokens"); return d }},
		{"datum 1: w is missing", beta, func(d []api.Datum) []api.Datum { delete(d[1].LossInputs, "w"); return d }},
		{"datum 0: w is int64, wanted float32", beta, func(d []api.Datum) []api.Datum { d[0].LossInputs["w"] = api.Ints([]int64{1, 2, 3}); return d }},
		{"datum 0: w has shape [2], target_tokens has [3]", beta, func(d []api.Datum) []api.Datum { d[0].LossInputs["w"] = api.Floats([]float32{1, 2}); return d }},
		{"datum 0: w has shape [3 1 1], wanted one or two dimensions", beta, func(d []api.Datum) []api.Datum {
			d[0].LossInputs["w"] = api.TensorData{Floats: []float32{1, 2, 3}, Shape: []int{3, 1, 1}}
			return d
		}},
		{"datum 0: w has shape [2 2], but holds 3 values", beta, func(d []api.Datum) []api.Datum {
			d[0].LossInputs["w"] = api.TensorData{Floats: []float32{1, 2, 3}, Shape: []int{2, 2}}
			return d
		}},
		{"datum 1: w has +Inf at 2, wanted finite numbers", beta, func(d []api.Datum) []api.Datum {
			d[1].LossInputs["w"].Floats[2] = float32(math.Inf(1))
			return d
		}},
		{"datum 1: margin has shape [2], wanted [1]", beta, func(d []api.Datum) []api.Datum { d[1].LossInputs["margin"] = api.Floats([]float32{1, 2}); return d }},
		{`datum 0: p does not know the input "margins"`, beta, func(d []api.Datum) []api.Datum { d[0].LossInputs["margins"] = api.Floats([]float32{1}); return d }},
	} {
		data := good()
		if c.edit != nil {
			data = c.edit(data)
		}
		_, err := m.prepare(data, nil, c.config)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("got %v, wanted %q", err, c.want)
		}
	}
	b := must(m.prepare(good(), nil, beta))
	if string(b.config) != `{"beta":0.5,"mode":1,"on":1}` || !reflect.DeepEqual(b.params, []float64{0.5, 1, 1}) {
		t.Errorf("configuration %s, params %v", b.config, b.params)
	}
}

// FuzzMetadata: what is accepted is within the limits, and comes back from JSON as it is.
func FuzzMetadata(f *testing.F) {
	for _, c := range metaCases {
		f.Add([]byte(c.text))
	}
	f.Add([]byte(crossEntropyMeta))
	f.Add([]byte(dpoMeta))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMeta(text)
		if err != nil {
			return
		}
		if len(m.Inputs) > maxInputs || len(m.Params) > maxParameter || len(m.Metrics) > maxMetrics || m.Name == "" {
			t.Fatalf("accepted %+v", m)
		}
		once := must(json.Marshal(m))
		back, err := parseMeta(once)
		if err != nil {
			t.Fatalf("%s: %v", once, err)
		}
		if twice := must(json.Marshal(back)); string(once) != string(twice) {
			t.Fatalf("%s comes back as %s", once, twice)
		}
	})
}
