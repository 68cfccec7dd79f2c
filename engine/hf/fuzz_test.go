package hf

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// seed adds the files that match a pattern below testdata to a corpus.
func seed(f *testing.F, pattern string) {
	f.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(paths) == 0 {
		f.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// FuzzSafetensors: a file that is read is exactly covered by its tensors, and comes back from the writer.
func FuzzSafetensors(f *testing.F) {
	for _, c := range hostileFiles {
		f.Add(c.file)
	}
	seed(f, "*.safetensors")
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseSafetensors(b)
		if err != nil {
			return
		}
		var again []Source
		total := 0
		for _, x := range h.tensors {
			total += len(x.Data)
			if bits := x.Len() * dtypes[x.Stored].bits; bits != 8*len(x.Data) {
				t.Fatalf("%s%v has %d bytes", x.Stored, x.Shape, len(x.Data))
			}
			if v := x.Float32s(); v != nil && len(v) != x.Len() {
				t.Fatalf("%s%v has %d values", x.Stored, x.Shape, len(v))
			}
			again = append(again, x.Source())
		}
		if total > len(b) {
			t.Fatalf("%d bytes of data in a file of %d", total, len(b))
		}
		var out bytes.Buffer
		if err := WriteSafetensors(&out, again, h.metadata); err != nil {
			t.Fatal(err)
		}
		back, err := parseSafetensors(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(back.tensors) != len(h.tensors) || len(back.metadata) != len(h.metadata) {
			t.Fatal("the file comes back with other contents")
		}
	})
}

// FuzzConfig: what is accepted is within the limits that the rest of the engine counts on.
func FuzzConfig(f *testing.F) {
	for _, c := range configCases {
		f.Add([]byte(c.text))
	}
	seed(f, "sharded/*config.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseGeneration(b)
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		for _, v := range []struct{ n, most int }{
			{c.HiddenSize, maxHidden}, {c.NumHiddenLayers, maxLayers}, {c.NumAttentionHeads, maxHeads},
			{c.NumKeyValueHeads, maxHeads}, {c.VocabSize, maxVocab},
		} {
			if v.n < 1 || v.n > v.most {
				t.Fatalf("accepted %d of at most %d: %+v", v.n, v.most, c)
			}
		}
		if !(c.RopeTheta > 0) || !(c.RMSNormEps >= 0) || c.ModelType == "" || c.NumAttentionHeads%c.NumKeyValueHeads != 0 {
			t.Fatalf("accepted %+v", c)
		}
		var any any
		_ = c.Decode("rope_scaling", &any)
	})
}

// FuzzIndex: every file is a plain name, and every tensor is listed once.
func FuzzIndex(f *testing.F) {
	seed(f, "sharded/*.index.json")
	for _, s := range []string{`{"weight_map":{"a":"x.safetensors"}}`, `{"weight_map":{"a":"../x.safetensors"}}`, `{"weight_map":{"a":1}}`,
		`{"weight_map":{}}`, `{"weight_map":[]}`, `{"weight_map":{"a":"C:x.safetensors","b":""}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		shards, err := parseIndex(b)
		if err != nil {
			return
		}
		var names []string
		for _, s := range shards {
			if plainName(s.file) != nil || filepath.Base(s.file) != s.file || len(s.tensors) == 0 {
				t.Fatalf("accepted %q with %d tensors", s.file, len(s.tensors))
			}
			names = append(names, s.tensors...)
		}
		slices.Sort(names)
		if len(names) == 0 || len(slices.Compact(names)) != len(names) {
			t.Fatal("a tensor is listed twice, or none is")
		}
	})
}

// FuzzAdapterConfig: an accepted config comes back from the writer as it is.
func FuzzAdapterConfig(f *testing.F) {
	for _, c := range adapterConfigCases {
		f.Add([]byte(c.text))
	}
	seed(f, "*/adapter_config.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAdapterConfig(b)
		if err != nil {
			return
		}
		if a.Rank < 1 || a.Rank > maxAdapterRank || !(a.Scale() >= 0) {
			t.Fatalf("accepted %+v", a)
		}
		text, err := a.ConfigText()
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseAdapterConfig(text)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(a)
		if got, _ := json.Marshal(back); !bytes.Equal(got, want) {
			t.Fatalf("comes back as %s, was %s", got, want)
		}
	})
}
