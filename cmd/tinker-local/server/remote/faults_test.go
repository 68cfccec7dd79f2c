package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/store"
	"tinkerlocal/store/storetest"
)

const path = "tinker://run/weights/first"

// memory is a store without a goroutine of its own.
func memory(t testing.TB) *store.Store {
	s := store.OpenMemory(store.Options{Interval: -1})
	t.Cleanup(func() { s.Close() })
	return s
}

func parse(t testing.TB, path string) api.Path {
	t.Helper()
	p, err := api.ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// within fails unless done comes true soon.
func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func wantCode(t *testing.T, what string, err error, code api.Code, part string) {
	t.Helper()
	if err == nil || api.CodeOf(err) != code || !strings.Contains(err.Error(), part) {
		t.Errorf("%s: got %v (%s), wanted %s (%s)", what, err, api.CodeOf(err), part, code)
	}
}

// TestClientDies: what a program had open when its connections broke is given up: its readers let go of what was deleted, its writers leave
// nothing behind.
func TestClientDies(t *testing.T) {
	behind := memory(t)
	h, _, at := serving(t, behind)
	x := storetest.Floats("a", 300_000, 1)
	if _, err := storetest.Save(behind, path, api.SaveOptions{}, x); err != nil {
		t.Fatal(err)
	}
	s := dial(t, at)
	if _, err := s.Open(t.Context(), parse(t, path)); err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(t.Context(), storetest.Describe("tinker://run/weights/second", nil), api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	y := storetest.Floats("b", 300_000, 2)
	if err := w.Tensor(t.Context(), y.TensorInfo, y.Data); err != nil {
		t.Fatal(err)
	}
	if err := behind.Delete(t.Context(), parse(t, path)); err != nil {
		t.Fatal(err)
	}
	if out, err := behind.Collect(t.Context()); err != nil || out.Deleted > 1 { // the record's table at most
		t.Fatalf("what is open was collected: %+v, %v", out, err)
	}
	if h.Sessions() != 1 || h.held() != 2 {
		t.Fatalf("%d sessions hold %d", h.Sessions(), h.held())
	}
	s.end(errors.New("killed")) // breaks its connections, and tells nobody
	within(t, "the end of the session", func() bool { return h.Sessions() == 0 && h.held() == 0 })
	within(t, "the end of its pins", func() bool {
		out, err := behind.Collect(t.Context())
		return err == nil && out.Kept == 0
	})
	if _, err := w.Commit(t.Context()); err == nil {
		t.Error("a dead program's checkpoint was committed")
	}
	if page, err := behind.List(t.Context(), api.CheckpointQuery{}); err != nil || page.Total != 0 {
		t.Errorf("left: %+v, %v", page, err)
	}
}

// TestServerGoes: when the serving end goes away, everything says so at once, and with an error that can be told.
func TestServerGoes(t *testing.T) {
	for _, way := range []string{"closed", "killed"} {
		behind := memory(t)
		if _, err := storetest.Save(behind, path, api.SaveOptions{}, storetest.Floats("a", 9, 1)); err != nil {
			t.Fatal(err)
		}
		h, web, at := serving(t, behind)
		s := dial(t, at)
		r, err := s.Open(t.Context(), parse(t, path))
		if err != nil {
			t.Fatal(err)
		}
		w, err := s.Create(t.Context(), storetest.Describe(path, nil), api.SaveOptions{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		if way == "killed" {
			web.Listener.Close()
			web.CloseClientConnections()
		} else {
			h.Close()
		}
		within(t, way, func() bool { return s.usable() != nil })
		_, err = s.Info(t.Context(), parse(t, path))
		_, committed := w.Commit(t.Context())
		for what, err := range map[string]error{"info": err, "read": r.Read(t.Context(), "a", make([]byte, 36)), "commit": committed, "put run": s.PutRun(t.Context(), api.RunRecord{ID: "r"})} {
			wantCode(t, way+": "+what, err, api.Closed, "the server at "+at.URL+" cannot be reached")
			if !errors.Is(err, ErrGone) {
				t.Errorf("%s: %s: %v is not ErrGone", way, what, err)
			}
		}
		if _, err := Open(t.Context(), at); way == "killed" && !errors.Is(err, ErrGone) {
			t.Errorf("to connect again: %v", err)
		}
	}
}

// damaged breaks every reader in the middle of a tensor.
type damaged struct{ *store.Store }

type damagedReader struct{ api.CheckpointReader }

var errDamaged = api.Errorf(api.DataLoss, "checkpoint x: tensor \"ä\": chunk 2 of 3\nis damaged")

func (d damaged) Open(ctx context.Context, p api.Path) (api.CheckpointReader, error) {
	r, err := d.Store.Open(ctx, p)
	return damagedReader{r}, err
}

func (d damagedReader) Stream(_ context.Context, _ string, w io.Writer) error {
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		return err
	}
	return errDamaged
}

// TestDamage: an error in the middle of a tensor arrives with its code and its words, not as an end of the connection.
func TestDamage(t *testing.T) {
	behind := memory(t)
	x := storetest.Floats("a", 10_000, 1)
	if _, err := storetest.Save(behind, path, api.SaveOptions{}, x); err != nil {
		t.Fatal(err)
	}
	_, _, at := serving(t, damaged{behind})
	r, err := dial(t, at).Open(t.Context(), parse(t, path))
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"read":   r.Read(t.Context(), "a", make([]byte, len(x.Data))),
		"stream": r.Stream(t.Context(), "a", io.Discard),
	} {
		if wantCode(t, what, err, api.DataLoss, errDamaged.Msg); err != nil && err.Error() != errDamaged.Msg {
			t.Errorf("%s: %q", what, err)
		}
	}
	wantCode(t, "no such tensor", r.Stream(t.Context(), "b", io.Discard), api.DataLoss, "") // as this reader has it
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wantCode(t, "closed", r.Read(t.Context(), "a", make([]byte, len(x.Data))), api.Closed, "closed")
}

// TestBrokenTensor: a tensor of which a part arrived spoils its checkpoint, whatever the program does then.
func TestBrokenTensor(t *testing.T) {
	behind := memory(t)
	_, _, at := serving(t, behind)
	s := dial(t, at)
	w, err := s.Create(t.Context(), storetest.Describe(path, nil), api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at0 := w.(*writer).at
	x := storetest.Floats("a", 100, 1)
	_, err = s.ask(t.Context(), http.MethodPut, at0, tensorQuery(x.TensorInfo), io.MultiReader(bytes.NewReader(x.Data[:90]), brokenReader{}), 400)
	if err == nil {
		t.Fatal("half a tensor was taken")
	}
	_, err = w.Commit(t.Context())
	wantCode(t, "commit", err, api.Cancelled, `tensor "a" broke off`)
	if page, err := behind.List(t.Context(), api.CheckpointQuery{}); err != nil || page.Total != 0 {
		t.Errorf("it is there: %+v, %v", page, err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

// TestCancel: a caller's end is told as such, and the store goes on.
func TestCancel(t *testing.T) {
	_, _, at := serving(t, memory(t))
	s := dial(t, at)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := s.Info(ctx, parse(t, path)); err != why {
		t.Errorf("got %v, wanted the cause", err)
	}
	_, err := s.Info(t.Context(), parse(t, path))
	wantCode(t, "afterwards", err, api.NotFound, "there is no checkpoint "+path)
}

// TestVersions: programs of different versions say so, and do nothing else.
func TestVersions(t *testing.T) {
	_, web, at := serving(t, memory(t))
	other := at
	other.Protocol++
	_, err := Open(t.Context(), other)
	wantCode(t, "known before", err, api.Unsupported, `"`+strconv.Itoa(Protocol+1)+`" and `+strconv.Itoa(Protocol))

	r, err := http.NewRequest(http.MethodPost, web.URL+Path+"/call/collect", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(keyHeader, key)
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, _ := io.ReadAll(a.Body)
	wantCode(t, "told by the server", parseError(a.Status, text), api.Unsupported, "do not speak the same version")

	at.Key = "tml-other"
	_, err = Open(t.Context(), at)
	wantCode(t, "another key", err, api.Internal, "401 Unauthorized")
}

// TestCertificate: the one certificate is trusted, whatever names it has, and no other; and no proxy is asked.
func TestCertificate(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	h := NewHandler(memory(t))
	web := httptest.NewTLSServer(http.StripPrefix(Path, h))
	defer web.Close()
	defer h.Close()
	at := Address{URL: web.URL, Protocol: Protocol, Certificate: Fingerprint(web.Certificate().Raw)}
	s, err := Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context(), api.CheckpointQuery{}); err != nil {
		t.Error(err)
	}
	s.Close()
	at.Certificate = strings.Repeat("0", 64)
	_, err = Open(t.Context(), at)
	wantCode(t, "another certificate", err, api.Closed, "another program answers")
	at.Certificate = ""
	_, err = Open(t.Context(), at)
	wantCode(t, "no certificate", err, api.Closed, "certificate")
}

// TestDrain: a server that is being stopped lets what is open be finished, and opens nothing more.
func TestDrain(t *testing.T) {
	behind := memory(t)
	h, _, at := serving(t, behind)
	s := dial(t, at)
	w, err := s.Create(t.Context(), storetest.Describe(path, nil), api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Drain(short); err == nil {
		t.Error("a writer is open, and drain has ended")
	}
	_, err = s.Create(t.Context(), storetest.Describe(path, nil), api.SaveOptions{})
	wantCode(t, "create", err, api.Closed, "being stopped")
	_, err = s.Open(t.Context(), parse(t, path))
	wantCode(t, "open", err, api.Closed, "being stopped")
	_, err = Open(t.Context(), at)
	wantCode(t, "connect", err, api.Closed, "being stopped")
	if !errors.Is(err, ErrGone) {
		t.Error("a server that is being stopped is none that has gone")
	}
	x := storetest.Floats("a", 100, 1)
	if err := w.Tensor(t.Context(), x.TensorInfo, x.Data); err != nil {
		t.Error(err)
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if err := h.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := behind.Info(t.Context(), parse(t, path)); err != nil {
		t.Error(err)
	}
}

// TestMemory: a large tensor is in the serving process once on its way up, and a piece at a time on its way down.
func TestMemory(t *testing.T) {
	const n = 64 << 20
	behind := memory(t)
	_, _, at := serving(t, behind)
	s := dial(t, at)
	c := storetest.Describe(path, nil)
	c.Bytes = n
	data := make([]byte, n)
	spent := func(do func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	if up := spent(func() {
		w, err := s.Create(t.Context(), c, api.SaveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Tensor(t.Context(), api.TensorInfo{Name: "a", DType: "F32", Shape: []int{n / 4}}, data); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}); up > n*3/2 {
		t.Errorf("%d bytes are allocated for %d on their way up", up, n)
	}
	stream := func(s api.Store) uint64 {
		r, err := s.Open(t.Context(), c.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return spent(func() {
			if err := r.Stream(t.Context(), "a", io.Discard); err != nil {
				t.Fatal(err)
			}
		})
	}
	if down, here := stream(s), stream(behind); down > here+n/8 {
		t.Errorf("%d bytes are allocated for %d on their way down, %d without a connection", down, n, here)
	}
	r, err := s.Open(t.Context(), c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if down, here := spent(func() {
		if err := r.Read(t.Context(), "a", data); err != nil {
			t.Fatal(err)
		}
	}), stream(behind); down > here+n/8 {
		t.Errorf("%d bytes are allocated for %d that are read, %d without a connection", down, n, here)
	}
}

// BenchmarkTransfer compares a store at the other end of a connection with the same store at hand.
func BenchmarkTransfer(b *testing.B) {
	const tensors, values = 64, 256 << 10
	behind := memory(b)
	h := NewHandler(behind)
	web := httptest.NewServer(http.StripPrefix(Path, h))
	defer web.Close()
	defer h.Close()
	s, err := Open(b.Context(), Address{URL: web.URL, Protocol: Protocol})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var blobs []storetest.Blob
	for i := range tensors {
		blobs = append(blobs, storetest.Floats("t"+strconv.Itoa(i), values, uint64(i)))
	}
	for _, c := range []struct {
		name  string
		store api.Store
	}{{"here", behind}, {"remote", s}} {
		b.Run("save/"+c.name, func(b *testing.B) {
			b.SetBytes(tensors * values * 4)
			for b.Loop() {
				if _, err := storetest.Save(c.store, path, api.SaveOptions{Overwrite: true}, blobs...); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := behind.Delete(b.Context(), parse(b, path)); err != nil {
					b.Fatal(err)
				}
				if _, err := behind.Collect(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		if _, err := storetest.Save(behind, path, api.SaveOptions{Overwrite: true}, blobs...); err != nil {
			b.Fatal(err)
		}
		b.Run("load/"+c.name, func(b *testing.B) {
			b.SetBytes(tensors * values * 4)
			r, err := c.store.Open(b.Context(), parse(b, path))
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			dst := make([]byte, values*4)
			for b.Loop() {
				for _, t := range r.Tensors() {
					if err := r.Read(b.Context(), t.Name, dst); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
