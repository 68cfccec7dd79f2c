package interchange

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/engine/hf"
)

// tarFile is a tar archive of entries, each a header and contents.
type tarFile struct {
	tar.Header
	data string
}

func plainFile(name, data string) tarFile {
	return tarFile{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600}, data}
}

func tarOf(t testing.TB, entries ...tarFile) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.data))
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"

func safetensors(t testing.TB, tensors ...hf.Source) string {
	t.Helper()
	var b bytes.Buffer
	if err := hf.WriteSafetensors(&b, tensors, nil); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// small is an adapter of one module, of rank 2 on 3 inputs and 4 outputs.
func small(t testing.TB) string {
	return safetensors(t, hf.Floats(q0+"A.weight", []int{2, 3}, make([]float32, 6)), hf.Floats(q0+"B.weight", []int{4, 2}, make([]float32, 8)))
}

const plainConfig = `{"r":2,"lora_alpha":32}`

// TestHostileArchives: what is not an archive of plain files, whole and of moderate size, is refused by name.
func TestHostileArchives(t *testing.T) {
	config, weights, complete := plainFile(configFile, plainConfig), plainFile(weightsFile, small(t)), plainFile(completeFile, "")
	good := tarOf(t, config, weights, complete)
	moment := func(prefix, which string, n ...int) hf.Source {
		size := 1
		for _, d := range n {
			size *= d
		}
		return hf.Floats(prefix+q0+which+".weight", n, make([]float32, size))
	}
	moments := []hf.Source{moment("adam_m/", "A", 2, 3), moment("adam_m/", "B", 4, 2), moment("adam_v/", "A", 2, 3), moment("adam_v/", "B", 4, 2)}
	state := plainFile(stateFile, `{"format_version":1,"base_model":"b","lora_config":{"rank":2,"train_attn":true,"seed":5},"version":3,"step":2}`)
	with := func(optimizer, state tarFile) []byte { return tarOf(t, config, weights, optimizer, state, complete) }
	adam := plainFile(optimizerFile, safetensors(t, moments...))
	link := func(kind byte) []byte {
		return tarOf(t, config, weights, tarFile{tar.Header{Typeflag: kind, Name: completeFile, Linkname: "/etc/passwd"}, ""})
	}
	lie := bytes.Clone(good)
	copy(lie[124:], "77777777777\x00") // the size in the first header
	fixChecksum(lie)
	sparse := tarOf(t, tarFile{tar.Header{Typeflag: tar.TypeReg, Name: configFile, Format: tar.FormatGNU}, "0123456789ab"})
	sparse[156] = tar.TypeGNUSparse
	copy(sparse[386:], "00000000000\x0000000000014\x00") // its one piece: 12 bytes from 0 on
	copy(sparse[483:], "00000000014\x00")                // all of it
	fixChecksum(sparse)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 8<<20))
	_ = z.Close()
	var many []tarFile
	for i := range maxEntries + 1 {
		many = append(many, plainFile(fmt.Sprint("f", i), ""))
	}
	for _, c := range []struct {
		name string
		b    []byte
		code api.Code
		want string
	}{
		{"good", good, "", ""},
		{"in the top folder", tarOf(t, tarFile{tar.Header{Typeflag: tar.TypeDir, Name: "./"}, ""}, plainFile("./"+configFile, plainConfig), weights, complete), "", ""},
		{"with more", tarOf(t, config, weights, plainFile("README.md", "x"), complete), "", ""},
		{"with moments", with(adam, state), "", ""},
		{"empty", nil, api.BadRequest, "it has no end mark: it was cut off after 0 bytes"},
		{"text", []byte(strings.Repeat("hello ", 200)), api.BadRequest, "entry 0: not a tar archive, damaged or cut off"},
		{"incomplete", tarOf(t, config, weights), api.BadRequest, "it has no checkpoint_complete: the archive was cut off"},
		{"no weights", tarOf(t, config, complete), api.BadRequest, "it has no adapter_model.safetensors: not an archive of a checkpoint"},
		{"symbolic link", link(tar.TypeSymlink), api.BadRequest, `entry "checkpoint_complete" is a symbolic link to "/etc/passwd", wanted plain files only`},
		{"hard link", link(tar.TypeLink), api.BadRequest, `is a hard link to "/etc/passwd", wanted plain files only`},
		{"device", link(tar.TypeChar), api.BadRequest, "is a device or pipe, wanted plain files only"},
		{"pipe", link(tar.TypeFifo), api.BadRequest, "is a device or pipe, wanted plain files only"},
		{"folder", tarOf(t, tarFile{tar.Header{Typeflag: tar.TypeDir, Name: "a/"}, ""}), api.BadRequest, `entry "a/" is a folder, wanted plain files only`},
		{"sparse", sparse, api.BadRequest, `entry "adapter_config.json" is a sparse file, wanted plain files only`},
		{"escape", tarOf(t, plainFile("../"+configFile, plainConfig)), api.BadRequest, `entry "../adapter_config.json" lies elsewhere`},
		{"absolute", tarOf(t, plainFile("/etc/passwd", "x")), api.BadRequest, `entry "/etc/passwd" lies elsewhere`},
		{"below", tarOf(t, plainFile("a/"+configFile, "x")), api.BadRequest, `entry "a/adapter_config.json" lies elsewhere`},
		{"twice", tarOf(t, config, plainFile("./"+configFile, "{}")), api.BadRequest, `entry "./adapter_config.json" appears twice`},
		{"many", tarOf(t, many...), api.BadRequest, "it has more than 64 entries"},
		{"huge file", lie, api.BadRequest, `with its 8589934591 bytes the files are larger than 4194304, which is the limit`},
		{"huge text", tarOf(t, plainFile(configFile, strings.Repeat(" ", 1<<20+1)), weights, complete), api.BadRequest, "adapter_config.json has 1048577 bytes, wanted at most 1048576"},
		{"bomb", bomb.Bytes(), api.BadRequest, "it is more than 4194304 bytes unpacked, which is the limit"},
		{"gzip cut off", packed(t, "gzip", good)[:100], api.BadRequest, "gzip: it is damaged or cut off"},
		{"zstd cut off", packed(t, "zstd", good)[:100], api.BadRequest, "zstd: it is damaged or cut off"},
		{"gzip of nothing", []byte{0x1f, 0x8b}, api.BadRequest, "gzip: unexpected EOF"},
		{"bad config", tarOf(t, plainFile(configFile, `{"r":2,"lora_alpha":32,"use_dora":true}`), weights, complete), api.Unsupported, "adapter_config.json: use_dora is true"},
		{"bad weights", tarOf(t, config, plainFile(weightsFile, "12345678"), complete), api.BadRequest, weightsFile + ": "},
		{"other rank", tarOf(t, plainFile(configFile, `{"r":3,"lora_alpha":32}`), weights, complete), api.BadRequest, "wanted [rank, in] with rank 3"},
		{"state alone", tarOf(t, config, weights, state, complete), api.BadRequest, "it has one of optimizer.safetensors and training_state.json, wanted both or neither"},
		{"moments alone", tarOf(t, config, weights, adam, complete), api.BadRequest, "it has one of optimizer.safetensors and training_state.json, wanted both or neither"},
		{"newer state", with(adam, plainFile(stateFile, `{"format_version":2}`)), api.Unsupported, "training_state.json: format_version is 2, this build reads 1"},
		{"other flags", with(adam, plainFile(stateFile, `{"format_version":1,"lora_config":{"rank":2,"train_mlp":true}}`)), api.BadRequest, "training_state.json: lora_config is"},
		{"not json", with(adam, plainFile(stateFile, `{`)), api.BadRequest, "training_state.json: invalid json"},
		{"negative step", with(adam, plainFile(stateFile, strings.Replace(state.data, `"step":2`, `"step":-2`, 1))), api.BadRequest, "step is -2 and version is 3"},
		{"few moments", with(plainFile(optimizerFile, safetensors(t, moments[:3]...)), state), api.BadRequest, "optimizer.safetensors: there are 3 moments of 2 factors"},
		{"moment of nothing", with(plainFile(optimizerFile, safetensors(t, hf.Floats("adam_m/base_model.model.lm_head.lora_A.weight", []int{1}, []float32{0}))), state), api.BadRequest, "is a moment of a factor that is not there"},
		{"moment of another shape", with(plainFile(optimizerFile, safetensors(t, moment("adam_m/", "A", 3, 2))), state), api.BadRequest, "is F32[3 2], wanted F32[2 3]"},
		{"third moment", with(plainFile(optimizerFile, safetensors(t, moment("adam_w/", "A", 2, 3))), state), api.BadRequest, "wanted a name that begins with adam_m/ or adam_v/"},
		{"moment not a number", with(plainFile(optimizerFile, safetensors(t, hf.Floats("adam_m/"+q0+"A.weight", []int{2, 3}, []float32{0, 0, float32(math.NaN()), 0, 0, 0}))), state), api.BadRequest, "value 2 is NaN"},
	} {
		temp := t.TempDir()
		o := ReadOptions{Temp: temp, MaxBytes: 4 << 20}
		s, err := ReadArchive(context.Background(), bytes.NewReader(c.b), o)
		expect(t, c.name, err, c.code, c.want)
		if err == nil {
			s.Close()
		}
		if left := files(t, temp); len(left) != 0 {
			t.Errorf("%s: a temporary file is left", c.name)
		}
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, c.b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err = OpenArchive(context.Background(), path, o)
		expect(t, c.name+" in a file", err, c.code, c.want)
		if err == nil {
			s.Close()
		}
	}
	_, err := OpenArchive(context.Background(), t.TempDir(), ReadOptions{})
	expect(t, "a folder", err, api.BadRequest, "it is not a regular file, wanted an archive")
	_, err = OpenArchive(context.Background(), filepath.Join(t.TempDir(), "x"), ReadOptions{})
	expect(t, "nothing", err, api.NotFound, "no such file")
}

// fixChecksum makes the first header of a tar file valid again.
func fixChecksum(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, x := range b[:block] {
		sum += int(x)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// TestTruncatedArchives: an archive that ends anywhere too early is refused.
func TestTruncatedArchives(t *testing.T) {
	st := memory(t)
	c := saved(t, st, sitesOf(t, enginetest.Small), state("run-1", seeded(1, true, false, false)))
	b := archiveOf(t, st, c.Path, ArchiveOptions{Optimizer: true})
	dir := t.TempDir()
	for n := 0; n <= len(b)-block; n += 256 { // one empty block at the end is enough of a mark
		if n == len(b)-block {
			break
		}
		path := filepath.Join(dir, "a.tar")
		if err := os.WriteFile(path, b[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenArchive(context.Background(), path, ReadOptions{})
		if err == nil {
			s.Close()
			t.Fatalf("the first %d of %d bytes are accepted", n, len(b))
		}
		if api.CodeOf(err) != api.BadRequest {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
}
