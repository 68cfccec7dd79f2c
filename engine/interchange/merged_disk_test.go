package interchange

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// TestMergedFailingDisk: whatever fails, is damaged or is cancelled, nothing is left.
func TestMergedFailingDisk(t *testing.T) {
	x, _ := planOf(t, peftAdapter(t, mergeFrom+"/adapter"), openBase(t, mergeFrom), MergedOptions{})
	holdsOnDisk(t, x, "m")
}

// TestMergedCancelled: an export ends at the next block after its context has, and leaves nothing and no goroutine.
func TestMergedCancelled(t *testing.T) {
	dir, a := bigBase(t, 1, 2, 4000)
	base := openBase(t, dir)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := PlanMerged(ctx, a, base, MergedOptions{})
	fails(t, "plan", err, api.Cancelled)
	for _, at := range []float64{0.03, 0.1, 0.3, 0.6, 0.95} { // in the writing of merged and of other tensors, and in the comparing
		ctx, cancel := context.WithCancel(context.Background())
		x, _ := planOf(t, a, base, MergedOptions{})
		parent := t.TempDir()
		after := int64(0)
		err := x.Write(ctx, filepath.Join(parent, "m"), WriteOptions{Progress: func(done, total int64) {
			if float64(done) > at*float64(total) {
				cancel()
				after++
			}
		}})
		fails(t, "write", err, api.Cancelled, "export merged to ")
		if after != 1 {
			t.Errorf("%d blocks were written after the end of the context", after-1)
		}
		if left := listed(t, parent); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
		cancel()
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("%d goroutines, %d before", now, before)
	}
}

// TestMergedReplaces: only an export of ours that is as we left it is replaced, and only if that is asked for.
func TestMergedReplaces(t *testing.T) {
	a, base := peftAdapter(t, mergeFrom+"/adapter"), openBase(t, mergeFrom)
	x, _ := planOf(t, a, base, MergedOptions{})
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "m")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := x.Write(ctx, dir, WriteOptions{}); err != nil {
		t.Fatal("into an empty folder: ", err)
	}
	fails(t, "again", x.Write(ctx, dir, WriteOptions{}), api.BadRequest, "it is there already")
	if err := x.Write(ctx, dir, WriteOptions{Replace: true}); err != nil {
		t.Fatal("replacing: ", err)
	}
	write := func(name, text string) func() {
		return func() {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		what   string
		change func()
		part   string
	}{
		{"a file more", write("notes.txt", "mine"), `"notes.txt" in it is not part of the export`},
		{"a changed file", func() {
			name := filepath.Join(dir, "generation_config.json")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[0] = '['
			write("generation_config.json", string(b))()
		}, `"generation_config.json" in it has been changed`},
		{"longer weights", write("model-00001-of-00002.safetensors", "x"), "has been changed"},
		{"a folder in place of a file", func() {
			name := filepath.Join(dir, "generation_config.json")
			if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, "is no longer a plain file"},
		{"no list", func() {
			if err := os.Remove(filepath.Join(dir, mergedManifest)); err != nil {
				t.Fatal(err)
			}
		}, "and no " + mergedManifest},
		{"another's list", write(mergedManifest, `{"files": {}}`), "not one of ours"},
	} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := x.Write(ctx, dir, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.change()
		before := listed(t, dir)
		fails(t, c.what, x.Write(ctx, dir, WriteOptions{Replace: true}), api.BadRequest, c.part)
		if after := listed(t, dir); !slices.Equal(before, after) {
			t.Errorf("%s: %v is left of %v", c.what, after, before)
		}
	}
	fails(t, "its own base", again(t, dir, x, a), api.BadRequest, "it is the base's own folder")
	fails(t, "a file", x.Write(ctx, filepath.Join(mergeFrom, "config.json"), WriteOptions{Replace: true}), api.BadRequest)
	fails(t, "another model", x.Write(ctx, mergeTied, WriteOptions{Replace: true}), api.BadRequest, "and no "+mergedManifest)
}

// again merges a into what x writes to dir, and writes the result there.
func again(t *testing.T, dir string, x *Export, a *Adapter) error {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := x.Write(context.Background(), dir, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	base, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	y, _ := planOf(t, a, base, MergedOptions{})
	return y.Write(context.Background(), dir, WriteOptions{Replace: true})
}
