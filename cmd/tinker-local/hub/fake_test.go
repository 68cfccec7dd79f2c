package hub

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testName   = "Org/Name-1.5"
	testCommit = "0123456789abcdef0123456789abcdef01234567"
	testToken  = "hf_secretSecretSECRET"
)

// fake is a hub on loopback, with a second server to which large files are redirected.
type fake struct {
	t        *testing.T
	hub, cdn *httptest.Server
	commit   string
	files    map[string][]byte
	large    map[string]bool // kept as LFS files: sha256, redirected

	// fault may answer a request in the fake's place, and then says so.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// listing may change what the hub lists, just before it is sent.
	listing func(l map[string]any)

	shared bool // by pulls that run at once

	mu   sync.Mutex
	idle *sync.Cond // busy has become 0
	busy int        // handlers that run
	open bool       // a pull runs; requests of earlier ones that come late are turned away
	seen []string   // METHOD host path range version auth
}

func content(name string, n int) []byte {
	seed := sha256.Sum256([]byte(name))
	return bytes.Repeat(seed[:], n/32+1)[:n]
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, commit: testCommit, large: map[string]bool{"model.safetensors": true, "tokenizer.json": true}, files: map[string][]byte{
		"config.json":       []byte(`{"model_type": "qwen3"}`),
		"tokenizer.json":    content("tokenizer", 70_000),
		"model.safetensors": content("model", 1_000_000),
		"README.md":         []byte("# no"),
		"pytorch_model.bin": content("bin", 100),
		"onnx/model.onnx":   content("onnx", 100),
		".gitattributes":    []byte("*"),
	}}
	f.idle = sync.NewCond(&f.mu)
	f.hub, f.cdn = httptest.NewServer(f.handler("hub")), httptest.NewServer(f.handler("cdn"))
	t.Cleanup(func() { f.hub.Close(); f.cdn.Close() })
	return f
}

// gate lets requests in, or turns them away and waits for those that are in.
func (f *fake) gate(open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.open = open; !open && f.busy > 0; {
		f.idle.Wait()
	}
}

func (f *fake) sharded() *fake {
	delete(f.files, "model.safetensors")
	f.files["model.safetensors.index.json"] = []byte(`{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}`)
	for _, name := range []string{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"} {
		f.files[name], f.large[name] = content(name, 300_000), true
	}
	return f
}

func gitSHA1(b []byte) string {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(b))
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

func sha(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func (f *fake) handler(host string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		if !f.open {
			f.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		f.busy++
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.busy--; f.busy == 0 {
				f.idle.Broadcast()
			}
		}()
		f.seen = append(f.seen, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s %s", r.Method, host, r.URL.EscapedPath(), r.Header.Get("Range"), r.Header.Get("If-Range"), r.Header.Get("Authorization"))))
		f.mu.Unlock()
		if f.fault != nil && f.fault(w, r) {
			return
		}
		switch path := r.URL.Path; {
		case host == "hub" && strings.HasPrefix(path, "/api/models/"+testName+"/revision/"):
			f.list(w)
		case host == "hub" && strings.HasPrefix(path, "/"+testName+"/resolve/"+f.commit+"/"):
			f.resolve(w, r, strings.TrimPrefix(path, "/"+testName+"/resolve/"+f.commit+"/"))
		case host == "cdn" && r.URL.Query().Get("Signature") != "":
			f.serve(w, r, strings.TrimPrefix(path, "/"))
		default:
			w.Header().Set("X-Error-Code", "RepoNotFound")
			http.Error(w, "Repository not found", http.StatusNotFound)
		}
	})
}

func (f *fake) list(w http.ResponseWriter) {
	var files []map[string]any
	for name, b := range f.files {
		x := map[string]any{"rfilename": name, "size": len(b), "blobId": gitSHA1(b)}
		if f.large[name] {
			x["blobId"] = gitSHA1([]byte("pointer"))
			x["lfs"] = map[string]any{"sha256": sha(b), "size": len(b), "pointerSize": 134}
		}
		files = append(files, x)
	}
	slices.SortFunc(files, func(a, b map[string]any) int {
		return strings.Compare(a["rfilename"].(string), b["rfilename"].(string))
	})
	l := map[string]any{"id": testName, "sha": f.commit, "siblings": files, "private": false}
	if f.listing != nil {
		f.listing(l)
	}
	_ = json.NewEncoder(w).Encode(l)
}

func (f *fake) resolve(w http.ResponseWriter, r *http.Request, name string) {
	b, ok := f.files[name]
	if !ok {
		w.Header().Set("X-Error-Code", "EntryNotFound")
		http.Error(w, "Entry not found", http.StatusNotFound)
		return
	}
	w.Header().Set("X-Repo-Commit", f.commit)
	if !f.large[name] {
		w.Header().Set("ETag", `"`+gitSHA1(b)+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return
	}
	w.Header().Set("X-Linked-Etag", `"`+sha(b)+`"`)
	w.Header().Set("X-Linked-Size", fmt.Sprint(len(b)))
	w.Header().Set("Location", f.cdn.URL+"/"+url.PathEscape(name)+"?Signature=sesame")
	w.WriteHeader(http.StatusFound)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request, name string) {
	b := f.files[name]
	w.Header().Set("ETag", `"cdn-`+sha(b)[:8]+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (f *fake) requests(part string) (list []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.seen {
		if strings.Contains(s, part) {
			list = append(list, s)
		}
	}
	return list
}

// pull is one pull with a client that never really waits.
type pull struct {
	f      *fake
	r      Request
	s      Settings
	l      Limits
	change func(*Client)

	waits  []time.Duration
	events []Event
}

func (f *fake) pull(models string) *pull {
	u, err := url.Parse(f.hub.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	return &pull{f: f, r: Request{Name: testName, Models: models}, s: Settings{Endpoint: u}, l: Limits{Stall: 20 * time.Second, MinBytes: 1}}
}

func (p *pull) run(ctx context.Context) (*Result, error) {
	p.f.t.Helper()
	c, err := New(p.s, p.l, "test/1", func(e Event) { p.events = append(p.events, e) })
	if err != nil {
		p.f.t.Fatal(err)
	}
	var mu sync.Mutex
	c.sleep = func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		p.waits = append(p.waits, d)
		return ctx.Err()
	}
	c.jitter = func() float64 { return 0 }
	if p.change != nil {
		p.change(c)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p.f.gate(true)
	res, err := c.Pull(ctx, p.r)
	if !p.f.shared { // the test is about to change what the handlers of given-up requests read
		c.web.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		p.f.gate(false)
	}
	return res, err
}

// tree lists the files below a folder with their contents.
func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[filepath.ToSlash(rel)] = b
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return files
}

// whole fails unless the model's folder holds exactly these files, and nothing is left beside it.
func (f *fake) whole(models string, names ...string) {
	f.t.Helper()
	got := tree(f.t, models)
	prefix := testName + "/"
	if _, ok := got[prefix+recordName]; !ok {
		f.t.Errorf("no %s in %v", recordName, keys(got))
	}
	delete(got, prefix+recordName)
	for _, name := range names {
		if b, ok := got[prefix+name]; !ok || !bytes.Equal(b, f.files[name]) {
			f.t.Errorf("%s: there %v, %d bytes, wanted %d", name, ok, len(b), len(f.files[name]))
		}
		delete(got, prefix+name)
	}
	if len(got) > 0 {
		f.t.Errorf("left over: %v", keys(got))
	}
}

// absent fails when the model's folder is there.
func (f *fake) absent(models string) {
	f.t.Helper()
	if _, err := os.Lstat(filepath.Join(models, filepath.FromSlash(testName))); !os.IsNotExist(err) {
		f.t.Errorf("a model that is not whole is visible: %v", keys(tree(f.t, models)))
	}
}

func keys(m map[string][]byte) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// once makes a fault that happens n times on requests whose path ends so.
func times(n int, ending string, do func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		hit := strings.HasSuffix(r.URL.Path, ending) && n > 0
		if hit {
			n--
		}
		mu.Unlock()
		if hit {
			do(w, r)
		}
		return hit
	}
}

// drop sends the beginning of a file with the header of the whole, then cuts the connection.
func (f *fake) drop(name string, n int) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		b := f.files[name]
		w.Header().Set("ETag", `"cdn-`+sha(b)[:8]+`"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b[:n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func status(code int, header ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}
