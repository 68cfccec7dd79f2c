package hf

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// TestSection: a safetensors file is read where it lies within another, and not beyond.
func TestSection(t *testing.T) {
	var b bytes.Buffer
	if err := WriteSafetensors(&b, []Source{Floats("x", []int{2}, []float32{1, 2})}, map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	if n, err := SafetensorsSize([]Source{{Name: "x", Stored: "F32", Shape: []int{2}}}, map[string]string{"k": "v"}); err != nil || n != int64(b.Len()) {
		t.Errorf("%d bytes were announced, %v", n, err)
	}
	path := filepath.Join(t.TempDir(), "archive")
	putFile(t, path, "0123456"+b.String()+"89")
	size := int64(b.Len())
	f, err := OpenSection(path, 7, size)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Tensors) != 1 || !slices.Equal(f.Tensors[0].Float32s(), []float32{1, 2}) || f.Metadata["k"] != "v" {
		t.Errorf("%+v", f)
	}
	f.Release(f.Tensors[0])
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ offset, size int64 }{{7, size + 3}, {-1, size}, {7, -1}, {1 << 62, 1 << 62}, {7 + size + 2, 1}} {
		if _, err := OpenSection(path, c.offset, c.size); api.CodeOf(err) != api.BadRequest {
			t.Errorf("%+v: %v", c, err)
		}
	}
	_, err = OpenSection(path, 6, size)
	if api.CodeOf(err) != api.BadRequest {
		t.Errorf("another place: %v", err)
	}
	putFile(t, path, b.String())
	if f, err = OpenFile(path); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := OpenFile(path + "x"); api.CodeOf(err) != api.NotFound {
		t.Errorf("nothing: %v", err)
	}
}

// TestWriteAdapterStreams: factors and whole modules can come from streams; a check that fails leaves nothing.
func TestWriteAdapterStreams(t *testing.T) {
	want, a := small(), small()
	for i := range a.Tensors {
		values := a.Tensors[i].Values
		a.Tensors[i].Values = nil
		a.Tensors[i].Stream = Floats("", nil, values).Write
	}
	dir := filepath.Join(t.TempDir(), "a")
	boom := errors.New("boom")
	if err := WriteAdapterTo(disk.System{}, dir, a, false, func(string) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("a check that fails: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it is there")
	}
	checked := ""
	if err := WriteAdapterTo(disk.System{}, dir, a, false, func(staged string) error { checked = staged; return nil }); err != nil || checked == "" {
		t.Fatalf("%v, checked %q", err, checked)
	}
	got, err := ReadAdapter(dir)
	if err != nil {
		t.Fatal(err)
	}
	want.Targets = []string{"q_proj"}
	sameAdapter(t, "streams", got, want)
	n, err := a.FolderBytes()
	size := 0
	for _, name := range []string{adapterName, adapterConfigName} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += len(b)
	}
	if err != nil || n != int64(size) {
		t.Errorf("%d bytes, %d were announced, %v", size, n, err)
	}
	open, closeFile, err := OpenAdapter(dir)
	if err != nil || open.Tensors[0].Values != nil || !slices.Equal(open.Tensors[0].Stored.Float32s(), want.Tensors[0].Values) {
		t.Errorf("%+v, %v", open, err)
	}
	closeFile()
	expect(t, "again", WriteAdapterTo(disk.System{}, dir, a, false, nil), api.BadRequest, "an adapter is there already")
	a.Tensors[0].Stream = func(w io.Writer) error { _, err := w.Write(make([]byte, 4)); return err }
	expect(t, "short", WriteAdapterTo(disk.System{}, dir, a, true, nil), api.BadRequest, `adapter_model.safetensors: tensor "`+a.Tensors[0].Name+`": 4 bytes were written, wanted 24 for F32[2 3]`)
	a.Tensors[0].Stream = nil
	expect(t, "neither", WriteAdapterTo(disk.System{}, dir, a, true, nil), api.BadRequest, `tensor "`+a.Tensors[0].Name+`" has 0 values, its shape is [2 3]`)
}
