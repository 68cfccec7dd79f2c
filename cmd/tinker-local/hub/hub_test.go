package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

// cdnModel is how the large file's path ends on the second server only.
const (
	cdnModel  = "/model.safetensors"
	modelPath = "model.safetensors"
)

// onCDN limits a fault to the second server.
func onCDN(fault func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Query().Get("Signature") != "" && fault(w, r)
	}
}

func TestPull(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	p := f.pull(dir)
	res, err := p.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
	want := int64(len(f.files["config.json"]) + 1_070_000)
	if res.Files != 3 || res.Bytes != want || res.Downloaded != want || res.Commit != testCommit || len(res.Notes) != 0 {
		t.Errorf("result %+v, wanted 3 files and %d bytes", res, want)
	}
	done := 0
	for _, e := range p.events {
		if e.Kind == Completed {
			done++
		}
	}
	if done != 3 {
		t.Errorf("%d files were reported as completed, wanted 3", done)
	}
	n := len(f.seen)
	res, err = f.pull(dir).run(t.Context())
	if err != nil || res.Downloaded != 0 || len(f.seen) != n+1 {
		t.Errorf("again: %+v, %v, %d requests; wanted nothing but the listing", res, err, len(f.seen)-n)
	}
}

// TestShards: the weights are what the index names, and not other safetensors.
func TestShards(t *testing.T) {
	f, dir := newFake(t).sharded(), t.TempDir()
	p := f.pull(dir)
	p.r.Include, p.r.Exclude = []string{"*.md", "onnx/*", "model-00002-*"}, []string{"*.onnx"}
	if _, err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", "tokenizer.json", "README.md", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
}

// TestSameContents: two names of one content are both there, and downloaded once.
func TestSameContents(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	f.files["vocab.json"] = f.files["config.json"]
	if _, err := f.pull(dir).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", "vocab.json", "tokenizer.json", modelPath)
}

// TestResume: what a pull has is kept when it ends early, and not asked for again.
func TestResume(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	f.fault = onCDN(times(1, cdnModel, f.drop(modelPath, 600_000)))
	p := f.pull(dir)
	p.l.Attempts = 1
	_, err := p.run(t.Context())
	if api.CodeOf(err) != api.Busy || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Fatalf("got %v, wanted the dropped connection", err)
	}
	f.absent(dir)
	res, err := f.pull(dir).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
	ranges := f.requests("GET cdn /model.safetensors bytes=")
	if len(ranges) != 1 || res.Downloaded >= 1_000_000 {
		t.Errorf("ranges %q, %d bytes downloaded; wanted one range and the rest of the file", ranges, res.Downloaded)
	}
}

// TestDrops: a connection that breaks again and again is mended within one pull.
func TestDrops(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	f.fault = onCDN(times(2, cdnModel, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			status(http.StatusBadGateway)(w, r)
			return
		}
		f.drop(modelPath, 300_000)(w, r)
	}))
	p := f.pull(dir)
	if _, err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
	if want := []time.Duration{500 * time.Millisecond, time.Second}; !slices.Equal(p.waits, want) {
		t.Errorf("waits %v, wanted %v", p.waits, want)
	}
}

// TestChangedBetween: a part of another version is not continued.
func TestChangedBetween(t *testing.T) {
	for _, sameID := range []bool{false, true} {
		f, dir := newFake(t), t.TempDir()
		f.fault = onCDN(times(1, cdnModel, f.drop(modelPath, 600_000)))
		if sameID { // a server without checksums: only the entity tag tells
			f.listing = func(l map[string]any) {
				for _, x := range l["siblings"].([]map[string]any) {
					delete(x, "lfs")
					delete(x, "blobId")
				}
			}
		}
		p := f.pull(dir)
		p.l.Attempts = 1
		if sameID {
			head := f.fault
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/resolve/") && r.Method == http.MethodHead {
					w.Header().Set("Content-Length", fmt.Sprint(len(f.files[filepath.Base(r.URL.Path)])))
					return true
				}
				return head(w, r)
			}
		}
		if _, err := p.run(t.Context()); err == nil {
			t.Fatal("the dropped connection was not noticed")
		}
		f.absent(dir)
		f.files[modelPath] = content("another", 1_000_000)
		if !sameID {
			f.commit = strings.Repeat("f", 40)
			full := f.pull(dir)
			full.change = func(c *Client) { c.free = func(string) (int64, error) { return 0, nil } }
			if _, err := full.run(t.Context()); err == nil {
				t.Error("a disk without room was written to")
			}
			for name := range tree(t, dir) {
				if strings.Contains(name, sha(content("model", 1_000_000))) {
					t.Errorf("%s, of another version, takes up room", name)
				}
			}
		}
		res, err := f.pull(dir).run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.whole(dir, "config.json", "tokenizer.json", modelPath)
		if sameID != (len(res.Notes) == 3) {
			t.Errorf("notes %q; wanted one for each file without a checksum", res.Notes)
		}
		if ranges := f.requests("GET cdn /model.safetensors bytes=600000- \"cdn-"); sameID && len(ranges) != 1 {
			t.Errorf("requests %q, wanted the part to be offered, for the version that it is of", f.requests("GET cdn /model"))
		}
	}
}

// TestUpdate: a new commit replaces the folder; what is unchanged is not downloaded again.
func TestUpdate(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	if _, err := f.pull(dir).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.commit = strings.Repeat("e", 40)
	f.files["config.json"] = []byte(`{"model_type": "llama"}`)
	delete(f.files, "tokenizer.json")
	res, err := f.pull(dir).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", modelPath)
	if res.Downloaded != int64(len(f.files["config.json"])) {
		t.Errorf("%d bytes downloaded, wanted the changed file only", res.Downloaded)
	}
	if len(res.Notes) != 1 || !strings.Contains(res.Notes[0], "tokenizer.json") {
		t.Errorf("notes %q, wanted the missing tokenizer", res.Notes)
	}
	// A file that was changed by hand is not taken over.
	f.commit = strings.Repeat("d", 40)
	path := filepath.Join(dir, filepath.FromSlash(testName), modelPath)
	if err := os.WriteFile(path, content("by hand", 1_000_000), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := f.pull(dir).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.whole(dir, "config.json", modelPath)
}

// TestCutCompletion: a pull that was killed while it gave the files their names loses nothing.
func TestCutCompletion(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	if _, err := f.pull(dir).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(dir, filepath.FromSlash(testName))
	hidden := filepath.Join(filepath.Dir(home), "."+filepath.Base(home))
	if err := os.MkdirAll(hidden+".pull", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(home, filepath.Join(hidden+".pull", "model")); err != nil {
		t.Fatal(err)
	}
	res, err := f.pull(dir).run(t.Context())
	if err != nil || res.Downloaded != 0 {
		t.Fatalf("%+v, %v; wanted the files that were there", res, err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
	// Between the two renames of a replacement.
	if err := os.Rename(home, hidden+".old"); err != nil {
		t.Fatal(err)
	}
	res, err = f.pull(dir).run(t.Context())
	if err != nil || res.Downloaded != 0 {
		t.Fatalf("%+v, %v; wanted the old folder back", res, err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
}

// TestInterrupt: ctrl-C keeps the parts, shows no model, and says so.
func TestInterrupt(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	f.fault = onCDN(times(1, cdnModel, func(w http.ResponseWriter, r *http.Request) {
		b := f.files[modelPath]
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b[:500_000])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	p := f.pull(dir)
	p.change = func(c *Client) {
		report := c.report
		c.report = func(e Event) {
			report(e)
			if e.File == modelPath && e.Done >= 500_000 {
				cancel()
			}
		}
	}
	_, err := p.run(ctx)
	if api.CodeOf(err) != api.Cancelled || !strings.Contains(err.Error(), "what is there is kept") {
		t.Errorf("got %v, wanted it cancelled", err)
	}
	f.absent(dir)
	res, err := f.pull(dir).run(t.Context())
	if err != nil || res.Downloaded > 600_000 {
		t.Errorf("%+v, %v; wanted the rest", res, err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
}

// TestTwoPulls: the second pull of a model is told about the first.
func TestTwoPulls(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	f.shared = true
	reached, release := make(chan struct{}), make(chan struct{})
	f.fault = onCDN(times(1, cdnModel, func(w http.ResponseWriter, r *http.Request) {
		close(reached)
		<-release
		f.serve(w, r, modelPath)
	}))
	first := make(chan error)
	go func() {
		_, err := f.pull(dir).run(t.Context())
		first <- err
	}()
	<-reached
	_, err := f.pull(dir).run(t.Context())
	if api.CodeOf(err) != api.Busy || !strings.Contains(err.Error(), "by another process") {
		t.Errorf("got %v, wanted to hear of the other pull", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
}

// TestDisk: too little room is said before the download, with numbers; a full disk keeps what is there.
func TestDisk(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	p := f.pull(dir)
	p.change = func(c *Client) { c.free = func(string) (int64, error) { return 40 << 20, nil } }
	f.files[modelPath] = content("model", 9<<20)
	_, err := p.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "has 40.0 MiB free, wanted 9.1 MiB for what is still to be downloaded and 32.0 MiB to spare") {
		t.Errorf("got %v, wanted the numbers", err)
	}
	if got := f.requests("cdn"); len(got) != 0 {
		t.Errorf("requests %q before the check", got)
	}
	p = f.pull(dir)
	p.change = func(c *Client) {
		c.write = func(w *os.File, b []byte) (int, error) {
			if st, err := w.Stat(); err == nil && st.Size() > 5<<20 {
				return 0, &os.PathError{Op: "write", Path: w.Name(), Err: syscall.ENOSPC}
			}
			return w.Write(b)
		}
	}
	_, err = p.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is full") || !strings.Contains(err.Error(), "goes on from here") {
		t.Errorf("got %v, wanted the full disk", err)
	}
	f.absent(dir)
	res, err := f.pull(dir).run(t.Context())
	if err != nil || res.Downloaded > 5<<20 {
		t.Errorf("%+v, %v; wanted the rest", res, err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)
}

// TestNotOurs: a folder that was not made here is left alone.
func TestNotOurs(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	home := filepath.Join(dir, filepath.FromSlash(testName))
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := f.pull(dir).run(t.Context()); err != nil { // an empty folder is nobody's
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(home, recordName)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	_, err := f.pull(dir).run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "it is left alone") {
		t.Errorf("got %v, wanted it refused", err)
	}
	if after := tree(t, dir); !slices.Equal(keys(before), keys(after)) {
		t.Errorf("before %v, after %v", keys(before), keys(after))
	}
}

// TestSizeFromHead: a listing without sizes and checksums is made up for by HEAD, as far as it answers.
func TestSizeFromHead(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	f.listing = func(l map[string]any) {
		for _, x := range l["siblings"].([]map[string]any) {
			delete(x, "lfs")
			delete(x, "blobId")
			delete(x, "size")
		}
	}
	res, err := f.pull(dir).run(t.Context())
	if err != nil || len(res.Notes) != 0 || res.Bytes != int64(1_070_000+len(f.files["config.json"])) {
		t.Fatalf("%+v, %v; wanted sizes and checksums from the headers", res, err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)

	// HEAD says no size, GET does.
	dir = t.TempDir()
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			w.Header().Set("Transfer-Encoding", "identity")
			return true
		}
		return false
	}
	res, err = f.pull(dir).run(t.Context())
	if err != nil || len(res.Notes) != 3 || res.Bytes != int64(1_070_000+len(f.files["config.json"])) {
		t.Fatalf("%+v, %v; wanted three notes", res, err)
	}
	f.whole(dir, "config.json", "tokenizer.json", modelPath)

	// Neither says one.
	dir = t.TempDir()
	head := f.fault
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/config.json") && r.Method == http.MethodGet {
			_, _ = w.Write([]byte("{"))
			_ = http.NewResponseController(w).Flush()
			return true
		}
		return head(w, r)
	}
	_, err = f.pull(dir).run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "neither a size nor a checksum") {
		t.Errorf("got %v, wanted it refused", err)
	}
}

// TestRecord: the record says where the model is from, and holds no secret.
func TestRecord(t *testing.T) {
	f, dir := newFake(t), t.TempDir()
	p := f.pull(dir)
	p.s.Token = NewToken(testToken, "$HF_TOKEN")
	if _, err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := tree(t, dir)[testName+"/"+recordName]
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.Commit != testCommit || r.Endpoint != f.hub.URL || len(r.Files) != 3 || r.Files[1].SHA256 == "" {
		t.Errorf("record %s, %v", text, err)
	}
	if bytes.Contains(text, []byte(testToken)) {
		t.Error("the token is in the record")
	}
}
