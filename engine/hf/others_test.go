package hf

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestOthers: a copy of a model gets its plain files; what belongs to other things, or lies elsewhere, is passed over with a reason.
func TestOthers(t *testing.T) {
	root := t.TempDir()
	dir, blobs := filepath.Join(root, "snapshots", "abc"), filepath.Join(root, "blobs")
	for _, d := range []string{dir, blobs, filepath.Join(dir, "onnx")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"config.json", "model.safetensors"} {
		b, err := os.ReadFile(filepath.Join("../model/testdata/llama", f))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{
		filepath.Join(dir, "merges.txt"), filepath.Join(dir, "model.gguf"), filepath.Join(dir, ".hidden"), filepath.Join(dir, "adapter_config.json"),
		filepath.Join(dir, "consolidated.00.pth"), filepath.Join(dir, "pytorch_model.bin.index.json"), filepath.Join(blobs, "123"), filepath.Join(root, "secret"),
	} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	big, err := os.Create(filepath.Join(dir, "big.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := big.Truncate(maxFileBytes + 1); err != nil { // takes no room
		t.Fatal(err)
	}
	big.Close()
	want := []string{"config.json", "merges.txt"}
	passed := []string{`"adapter_config.json" belongs to an adapter`, `"big.txt" is 134217729 bytes, more than the 134217728 that are copied`, `"onnx" is a folder`}
	for name, target := range map[string]string{
		"tokenizer.json": "../../blobs/123", "vocab.json": "merges.txt", "secret": "../../secret", "deep": "onnx/x", "gone": "nothing", "up": "..",
	} {
		if os.Symlink(filepath.FromSlash(target), filepath.Join(dir, name)) != nil {
			continue // no links here
		}
		if name == "tokenizer.json" || name == "vocab.json" {
			want = append(want, name)
		} else {
			passed = append(passed, `"`+name+`" is a link that leads out of the folder`)
		}
	}
	slices.Sort(want)
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	names, left, err := c.Others()
	slices.Sort(left)
	slices.Sort(passed)
	if err != nil || !slices.Equal(names, want) || !slices.Equal(left, passed) {
		t.Errorf("names %q, wanted %q\npassed over %q, wanted %q\n%v", names, want, left, passed, err)
	}
	memory, err := OpenFS("m", os.DirFS("../model/testdata/llama"))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if names, _, err := memory.Others(); err != nil || !slices.Equal(names, []string{"config.json", "generation_config.json", "golden.json"}) {
		t.Errorf("names %q, %v", names, err)
	}
}
