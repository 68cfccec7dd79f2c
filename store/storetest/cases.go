package storetest

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

const (
	state   = "tinker://run:train:0/weights/first"
	sampler = "tinker://run:train:0/sampler_weights/first"
)

func saveAndLoad(t *testing.T, b *bench) {
	blobs := []Blob{Floats("a", 100, 1), Floats("large", 600_000, 2), Floats("b.lora_A", 33, 3)}
	c := b.save(state, blobs...)
	if c.Tensors != 3 || c.Bytes != 4*600_133 || c.Stored <= 0 || c.Stored >= c.Bytes || c.Written < c.Stored || len(c.SHA256) != 64 ||
		!c.Created.Equal(b.clock.T) || !c.Expires.IsZero() || c.Public || c.Owner != "ann" || *c.Lora.Seed != 7 {
		t.Errorf("the checkpoint is %+v", c)
	}
	for range 2 {
		b.has(state, blobs...)
		info, err := b.Info(ctx, parse(state))
		if err != nil || !sameCheckpoint(info, c) {
			t.Errorf("info is %+v, wanted %+v (%v)", info, c, err)
		}
		b.reopen()
	}
	r, err := b.Open(ctx, parse(state))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b.code(r.Read(ctx, "a", make([]byte, 399)), api.BadRequest, `tensor "a" has 400 bytes, the buffer 399`)
	b.code(r.Read(ctx, "c", nil), api.NotFound, `has no tensor "c"`)
	if err := r.Stream(ctx, "large", &failing{1 << 20}); err != errStop {
		t.Errorf("a failing writer gave %v", err)
	}
	again := b.save("tinker://run:train:0/weights/copy", blobs...)
	if again.SHA256 != c.SHA256 {
		t.Error("equal tensors have different sums")
	}
	if other := b.save("tinker://run:train:0/weights/other", blobs[:2]...); other.SHA256 == c.SHA256 {
		t.Error("different tensors have equal sums")
	}
	b.save("tinker://run:train:0/weights/empty")
	b.has("tinker://run:train:0/weights/empty")
}

func sameCheckpoint(a, b api.Checkpoint) bool {
	if !a.Created.Equal(b.Created) || !a.Expires.Equal(b.Expires) {
		return false
	}
	a.Created, b.Created, a.Expires, b.Expires = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return reflect.DeepEqual(a, b)
}

func tensorTypes(t *testing.T, b *bench) {
	var blobs []Blob
	for _, d := range []struct {
		name string
		size int
	}{{"F64", 8}, {"I64", 8}, {"F32", 4}, {"I32", 4}, {"BF16", 2}, {"F16", 2}, {"I16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1}} {
		data := Floats("", 10*d.size, uint64(d.size)).Data[:20*d.size]
		blobs = append(blobs, Blob{api.TensorInfo{Name: "x." + d.name, DType: d.name, Shape: []int{4, 5}}, data})
	}
	blobs = append(blobs,
		Blob{api.TensorInfo{Name: "scalar", DType: "F32", Shape: []int{}}, []byte{1, 2, 3, 4}},
		Blob{api.TensorInfo{Name: "none", DType: "F32", Shape: []int{3, 0}}, []byte{}},
		Blob{api.TensorInfo{Name: "zeros", DType: "F32", Shape: []int{1 << 20}}, make([]byte, 4<<20)},
	)
	c := b.save(state, blobs...)
	if c.Stored > 100_000 {
		t.Errorf("zeros take %d bytes", c.Stored)
	}
	b.has(state, blobs...)
	b.reopen()
	b.has(state, blobs...)
}

// metadata: what people note on a checkpoint is there, in lists and with the run, as it was when it was saved.
func metadata(t *testing.T, b *bench) {
	x := Floats("a", 10, 1)
	given := map[string]string{"note": "first \u2713", "": ""}
	_, err := b.Create(ctx, Describe(state, nil), api.SaveOptions{UserMetadata: given})
	b.code(err, api.BadRequest, "empty name")
	delete(given, "")
	if err := b.PutRun(ctx, api.RunRecord{ID: "run:train:0", Owner: "ann"}); err != nil {
		t.Fatal(err)
	}
	c := Describe(state, []Blob{x})
	c.UserMetadata = map[string]string{"not": "this"}
	if _, err := SaveAs(b, c, api.SaveOptions{UserMetadata: given}, x); err != nil {
		t.Fatal(err)
	}
	given["note"] = "changed later"
	for range 2 {
		list, err := b.List(ctx, api.CheckpointQuery{})
		if err != nil || len(list.Checkpoints) != 1 {
			t.Fatalf("the list is %+v, %v", list, err)
		}
		info, err := b.Info(ctx, parse(state))
		if err != nil {
			t.Fatal(err)
		}
		run, err := b.Run(ctx, "run:train:0")
		if err != nil || run.LastCheckpoint == nil {
			t.Fatalf("the run is %+v, %v", run, err)
		}
		r, err := b.Open(ctx, parse(state))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []api.Checkpoint{list.Checkpoints[0], info, *run.LastCheckpoint, r.Checkpoint()} {
			if len(c.UserMetadata) != 1 || c.UserMetadata["note"] != "first \u2713" {
				t.Errorf("the notes are %q", c.UserMetadata)
			}
		}
		r.Close()
		if err := b.SetTTL(ctx, parse(state), time.Hour); err != nil { // the record is written again
			t.Fatal(err)
		}
		b.reopen()
	}
	if c, err := Save(b, state, api.SaveOptions{Overwrite: true}, x); err != nil || c.UserMetadata != nil {
		t.Errorf("a checkpoint that replaced another has %q, %v", c.UserMetadata, err)
	}
}

func refusals(t *testing.T, b *bench) {
	ok := Describe(state, nil)
	for _, c := range []struct {
		part   string
		change func(c *api.Checkpoint, o *api.SaveOptions)
	}{
		{"has no kind", func(c *api.Checkpoint, _ *api.SaveOptions) { c.Path.Kind = "" }},
		{"run id", func(c *api.Checkpoint, _ *api.SaveOptions) { c.Path.Run = "../x" }},
		{"name", func(c *api.Checkpoint, _ *api.SaveOptions) { c.Path.Name = "a/b" }},
		{"owner", func(c *api.Checkpoint, _ *api.SaveOptions) { c.Owner = "" }},
		{"size is -1", func(c *api.Checkpoint, _ *api.SaveOptions) { c.Bytes = -1 }},
		{"time to live is -1s", func(_ *api.Checkpoint, o *api.SaveOptions) { o.TTL = -time.Second }},
		{"keep_last is -1", func(_ *api.Checkpoint, o *api.SaveOptions) { o.KeepLast = -1 }},
	} {
		d, o := ok, api.SaveOptions{}
		c.change(&d, &o)
		_, err := b.Create(ctx, d, o)
		b.code(err, api.BadRequest, c.part)
	}
	for _, c := range []struct {
		part string
		info api.TensorInfo
		n    int
	}{
		{"name", api.TensorInfo{Name: "", DType: "F32"}, 4},
		{"name", api.TensorInfo{Name: "a\x00", DType: "F32"}, 4},
		{"name", api.TensorInfo{Name: "\xff", DType: "F32"}, 4},
		{"name", api.TensorInfo{Name: strings.Repeat("x", 513), DType: "F32"}, 4},
		{"dtype", api.TensorInfo{Name: "a", DType: "F33"}, 4},
		{"dimensions", api.TensorInfo{Name: "a", DType: "F32", Shape: make([]int, 9)}, 0},
		{"shape", api.TensorInfo{Name: "a", DType: "F32", Shape: []int{-1}}, 0},
		{"shape", api.TensorInfo{Name: "a", DType: "F32", Shape: []int{math.MaxInt, math.MaxInt}}, 0},
		{"has 8 bytes, wanted 4", api.TensorInfo{Name: "a", DType: "F32"}, 8},
	} {
		w, err := b.Create(ctx, ok, api.SaveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b.code(w.Tensor(ctx, c.info, make([]byte, c.n)), api.BadRequest, c.part)
		_, err = w.Commit(ctx)
		b.code(err, api.BadRequest, c.part)
		w.Abort()
	}
	_, err := Save(b, state, api.SaveOptions{}, Floats("a", 1, 1), Floats("a", 1, 1))
	b.code(err, api.BadRequest, "twice")
	w, err := b.Create(ctx, ok, api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	_, err = w.Commit(ctx)
	b.code(err, api.BadRequest, "after commit or abort")
	b.code(b.SetTTL(ctx, parse(state), 0), api.BadRequest, "time to live")
	b.lacks(state)
}

func overwrite(t *testing.T, b *bench) {
	first, second := Floats("a", 300_000, 1), Floats("a", 200_000, 2)
	b.save(state, first)
	_, err := Save(b, state, api.SaveOptions{}, second)
	b.code(err, api.BadRequest, "exists since")
	b.has(state, first)
	w, err := b.Create(ctx, Describe(state, nil), api.SaveOptions{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Tensor(ctx, second.TensorInfo, second.Data); err != nil {
		t.Fatal(err)
	}
	b.has(state, first)
	if _, err := w.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	b.has(state, second)
	b.collect()
	b.has(state, second)
	b.reopen()
	b.has(state, second)
	one, err := b.Create(ctx, Describe(sampler, nil), api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer one.Abort()
	b.save(sampler, first) // of two that began with the same name, the first to commit has it
	_, err = one.Commit(ctx)
	b.code(err, api.BadRequest, "exists since")
	b.has(sampler, first)
}

func abort(t *testing.T, b *bench) {
	kept, dropped := Floats("a", 300_000, 1), Floats("b", 300_000, 2)
	b.save(state, kept)
	w, err := b.Create(ctx, Describe(sampler, nil), api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []Blob{kept, dropped} {
		if err := w.Tensor(ctx, x.TensorInfo, x.Data); err != nil {
			t.Fatal(err)
		}
	}
	b.collect() // must leave what the writer has
	w.Abort()
	w.Abort()
	b.lacks(sampler)
	b.collect()
	b.has(state, kept)
	b.reopen()
	b.lacks(sampler)
	b.has(state, kept)
}

func keepLast(t *testing.T, b *bench) {
	name := func(i int) string { return fmt.Sprintf("tinker://run:train:0/weights/%06d", i) }
	b.save("tinker://other/weights/x", Floats("a", 9, 1))
	b.save(sampler, Floats("a", 9, 1))
	for i := range 6 {
		b.saveWith(name(i), api.SaveOptions{KeepLast: 2}, Floats("a", 9, uint64(i)))
		if i == 1 {
			if err := b.Publish(ctx, parse(name(1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := []string{name(5), name(4), name(1)}
	for range 2 {
		if got := b.list(api.CheckpointQuery{Run: "run:train:0", Kind: api.KindState}); !slices.Equal(got, want) {
			t.Errorf("left are %v, wanted %v", got, want)
		}
		b.collect()
		b.reopen()
	}
	b.has(sampler, Floats("a", 9, 1))
	b.saveWith(name(5), api.SaveOptions{KeepLast: 1, Overwrite: true}, Floats("a", 9, 50))
	if got := b.list(api.CheckpointQuery{Run: "run:train:0", Kind: api.KindState}); !slices.Equal(got, []string{name(5), name(1)}) {
		t.Errorf("left are %v", got)
	}
}

func expiry(t *testing.T, b *bench) {
	start := b.clock.T
	x := Floats("a", 50, 1)
	b.saveWith(state, api.SaveOptions{TTL: time.Hour}, x)
	b.save(sampler, x)
	b.clock.T = start.Add(-1000 * time.Hour) // jumps back
	b.has(state, x)
	b.reopen()
	b.collect()
	b.has(state, x)
	b.clock.T = start.Add(time.Hour - 1)
	b.has(state, x)
	b.clock.T = start.Add(time.Hour)
	b.lacks(state)
	b.has(sampler, x)
	b.clock.T = start // a wrong clock was put right
	b.has(state, x)
	if err := b.ClearTTL(ctx, parse(state)); err != nil {
		t.Fatal(err)
	}
	if err := b.SetTTL(ctx, parse(sampler), 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	b.reopen()
	if c, err := b.Info(ctx, parse(sampler)); err != nil || !c.Expires.Equal(start.Add(2*time.Hour)) {
		t.Errorf("info is %+v, %v", c, err)
	}
	b.clock.T = start.Add(3 * time.Hour)
	b.lacks(sampler)
	b.has(state, x)
	b.save(sampler, Floats("a", 50, 2)) // an expired name is free
	b.has(sampler, Floats("a", 50, 2))
}

func publish(t *testing.T, b *bench) {
	b.save(state, Floats("a", 5, 1))
	p := parse(state)
	for i, public := range []bool{true, true, false, false} {
		f := b.Unpublish
		if public {
			f = b.Publish
		}
		if err := f(ctx, p); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			b.reopen()
		}
		c, err := b.Info(ctx, p)
		if err != nil || c.Public != public || c.ReadableBy("bob") != public || !c.ReadableBy("ann") {
			t.Errorf("step %d: %+v, %v", i, c, err)
		}
		if seen := len(b.list(api.CheckpointQuery{Reader: "bob"})); (seen == 1) != public {
			t.Errorf("step %d: another owner sees %d", i, seen)
		}
	}
}

func remove(t *testing.T, b *bench) {
	x, y := Floats("a", 400_000, 1), Floats("b", 400_000, 2)
	b.save(state, x, y)
	b.save(sampler, x)
	if err := b.Delete(ctx, parse(state)); err != nil {
		t.Fatal(err)
	}
	b.lacks(state)
	b.collect()
	b.has(sampler, x)
	b.reopen()
	b.lacks(state)
	b.has(sampler, x)
	b.save(state, y)
	b.has(state, y)
}

func twoParts(t *testing.T, b *bench) {
	b.save(sampler, Floats("a", 5, 1))
	b.has("tinker://run:train:0/first", Floats("a", 5, 1))
	b.save(state, Floats("a", 5, 2))
	b.has("tinker://run:train:0/first", Floats("a", 5, 2))
	if c, err := b.Info(ctx, parse("tinker://run:train:0/first")); err != nil || c.Path.String() != state {
		t.Errorf("info is %+v, %v", c, err)
	}
	b.lacks("tinker://run:train:0/second")
}

func lists(t *testing.T, b *bench) {
	var all []string
	for i := range 10 {
		c := Describe(fmt.Sprintf("tinker://run%d/weights/Step-%d", i%2, i), nil)
		if i == 3 || i == 4 {
			c.Owner, c.BaseModel = "bob", "other/base"
		}
		if i == 6 {
			b.clock.T = b.clock.T.Add(-time.Hour) // the order is that of the saves, whatever the clock says
		}
		if _, err := SaveAs(b, c, api.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		all = append([]string{c.Path.String()}, all...)
	}
	pick := func(is ...int) (out []string) {
		for _, i := range is {
			out = append(out, all[9-i])
		}
		return out
	}
	for range 2 {
		for _, c := range []struct {
			q    api.CheckpointQuery
			want []string
		}{
			{api.CheckpointQuery{}, all},
			{api.CheckpointQuery{Run: "run1"}, pick(9, 7, 5, 3, 1)},
			{api.CheckpointQuery{Owner: "bob"}, pick(4, 3)},
			{api.CheckpointQuery{Reader: "bob"}, pick(4, 3)},
			{api.CheckpointQuery{Owner: "bob", Run: "run0"}, pick(4)},
			{api.CheckpointQuery{BaseModel: "BASE"}, pick(4, 3)},
			{api.CheckpointQuery{BaseModel: "other/Base"}, pick(4, 3)},
			{api.CheckpointQuery{BaseModel: "bas"}, nil},
			{api.CheckpointQuery{Name: "p-7"}, pick(7)},
			{api.CheckpointQuery{Name: "STEP"}, all},
			{api.CheckpointQuery{Kind: api.KindSampler}, nil},
			{api.CheckpointQuery{Page: api.Page{Limit: 3}}, all[:3]},
			{api.CheckpointQuery{Page: api.Page{Limit: 3, Offset: 8}}, all[8:]},
			{api.CheckpointQuery{Page: api.Page{Offset: 80}}, nil},
		} {
			if got := b.list(c.q); !slices.Equal(got, c.want) {
				t.Errorf("%+v gives %v, wanted %v", c.q, got, c.want)
			}
		}
		b.reopen()
	}
	var got []string
	q := api.CheckpointQuery{Page: api.Page{Limit: 3}}
	for i := 0; ; i++ {
		page, err := b.List(ctx, q)
		if err != nil || page.Total < 9 {
			t.Fatalf("page %d: %+v, %v", i, page, err)
		}
		for _, c := range page.Checkpoints {
			got = append(got, c.Path.String())
		}
		if i == 0 { // a page does not move when the list does
			b.save("tinker://run0/weights/new")
			if err := b.Delete(ctx, parse(all[1])); err != nil {
				t.Fatal(err)
			}
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	if !slices.Equal(got, all) {
		t.Errorf("the pages are %v, wanted %v", got, all)
	}
	_, err := b.List(ctx, api.CheckpointQuery{Page: api.Page{Cursor: "!"}})
	b.code(err, api.BadRequest, `cursor is "!"`)
	_, err = b.List(ctx, api.CheckpointQuery{Page: api.Page{Limit: -1}})
	b.code(err, api.BadRequest, "limit is -1")
	if none, err := b.List(ctx, api.CheckpointQuery{Name: "nobody's"}); err != nil || none.Checkpoints == nil || len(none.Checkpoints) != 0 {
		t.Errorf("a list of none: %#v, %v", none, err)
	}
	if none, err := b.Runs(ctx, api.RunQuery{Owner: "nobody"}); err != nil || none.Runs == nil || len(none.Runs) != 0 {
		t.Errorf("a list of no runs: %#v, %v", none, err)
	}
}

func runs(t *testing.T, b *bench) {
	put := func(id, owner string) {
		t.Helper()
		b.clock.T = b.clock.T.Add(time.Second)
		r := api.RunRecord{ID: id, Owner: owner, BaseModel: "org/Base-1B", Lora: api.LoraConfig{Rank: 4}, UserMetadata: map[string]string{"k": id}}
		if err := b.PutRun(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(q api.RunQuery) (out []string, next string) {
		t.Helper()
		page, err := b.Runs(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Runs {
			out = append(out, r.ID)
		}
		return out, page.Next
	}
	for i := range 5 {
		put(fmt.Sprintf("r%d", i), []string{"ann", "bob"}[i%2])
	}
	made := b.clock.T.Add(-4 * time.Second)
	put("r0", "ann") // again: now the latest, and as old as before
	for _, c := range []struct {
		q    api.RunQuery
		want string
	}{
		{api.RunQuery{}, "r0 r4 r3 r2 r1"},
		{api.RunQuery{Owner: "bob"}, "r3 r1"},
		{api.RunQuery{BaseModel: "base-1b", Page: api.Page{Offset: 1, Limit: 2}}, "r4 r3"},
		{api.RunQuery{BaseModel: "base"}, ""},
	} {
		if got, _ := ids(c.q); strings.Join(got, " ") != c.want {
			t.Errorf("%+v gives %v, wanted %s", c.q, got, c.want)
		}
	}
	got, next := ids(api.RunQuery{Page: api.Page{Limit: 2}})
	rest, _ := ids(api.RunQuery{Page: api.Page{Cursor: next}})
	if got = append(got, rest...); strings.Join(got, " ") != "r0 r4 r3 r2 r1" {
		t.Errorf("the pages are %v", got)
	}
	b.save("tinker://r1/weights/one")
	b.save("tinker://r1/weights/two")
	b.save("tinker://r1/sampler_weights/three")
	b.reopen()
	r, err := b.Run(ctx, "r1")
	if err != nil || r.LastCheckpoint.Path.Name != "two" || r.LastSamplerCheckpoint.Path.Name != "three" || r.UserMetadata["k"] != "r1" {
		t.Fatalf("the run is %+v, %v", r, err)
	}
	if s := r.Shared(); s.UserMetadata != nil || s.LastCheckpoint != nil {
		t.Errorf("others see %+v", s)
	}
	if r, err := b.Run(ctx, "r0"); err != nil || !r.Created.Equal(made) {
		t.Errorf("the run is %+v, wanted it made at %v (%v)", r, made, err)
	}
	_, err = b.Run(ctx, "r9")
	b.code(err, api.NotFound, `no run "r9"`)
	b.code(b.PutRun(ctx, api.RunRecord{ID: "a/b", Owner: "ann"}), api.BadRequest, "run id")
	b.code(b.PutRun(ctx, api.RunRecord{ID: "a"}), api.BadRequest, "owner")
	b.code(b.PutRun(ctx, api.RunRecord{ID: "a", Owner: "a", UserMetadata: map[string]string{"k": strings.Repeat("x", 2<<20)}}), api.BadRequest, "record has")
}

func readerOutlives(t *testing.T, b *bench) {
	x := Floats("a", 700_000, 1)
	b.save(state, x)
	r, err := b.Open(ctx, parse(state))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, parse(state)); err != nil {
		t.Fatal(err)
	}
	b.collect()
	dst := make([]byte, len(x.Data))
	if err := r.Read(ctx, "a", dst); err != nil || !slices.Equal(dst, x.Data) {
		t.Errorf("a deleted checkpoint that is being read: %v", err)
	}
	r.Close()
	r.Close()
	b.collect()
	b.lacks(state)
}

func sharedChunks(t *testing.T, b *bench) {
	x, y := Floats("a", 600_000, 1), Floats("b", 600_000, 2)
	first := b.save(state, x, y)
	second := b.save(sampler, x)
	if second.Written > 4096 || second.Stored < first.Stored/3 {
		t.Errorf("the first save wrote %d of %d bytes, a part of it again %d of %d", first.Written, first.Stored, second.Written, second.Stored)
	}
	twice := b.save("tinker://run:train:0/weights/twice", x, Blob{api.TensorInfo{Name: "c", DType: "F32", Shape: x.Shape}, x.Data})
	if twice.Written > 4096 || twice.Stored > second.Stored+4096 {
		t.Errorf("one content twice takes %+v", twice)
	}
}

func closed(t *testing.T, b *bench) {
	x := Floats("a", 5, 1)
	b.save(state, x)
	r, err := b.Open(ctx, parse(state))
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.Create(ctx, Describe(sampler, nil), api.SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b.code(r.Read(ctx, "a", make([]byte, 20)), api.Closed, "closed")
	r.Close()
	_, err = w.Commit(ctx)
	b.code(err, api.Closed, "closed")
	_, err = b.Info(ctx, parse(state))
	b.code(err, api.Closed, "closed")
	_, err = b.List(ctx, api.CheckpointQuery{})
	b.code(err, api.Closed, "closed")
	_, err = b.Create(ctx, Describe(state, nil), api.SaveOptions{})
	b.code(err, api.Closed, "closed")
	b.code(b.Delete(ctx, parse(state)), api.Closed, "closed")
	b.code(b.PutRun(ctx, api.RunRecord{ID: "a", Owner: "a"}), api.Closed, "closed")
}

// concurrent saves, reads, deletes and collects at once.
func concurrent(t *testing.T, b *bench) {
	var work sync.WaitGroup
	shared := Floats("shared", 300_000, 77)
	for i := range 4 {
		work.Go(func() {
			for j := range 6 {
				path := fmt.Sprintf("tinker://run%d/weights/%d", i, j%3)
				own := Floats("own", 30_000, uint64(i*10+j))
				if _, err := Save(b, path, api.SaveOptions{Overwrite: true}, shared, own); err != nil {
					t.Errorf("%s: %v", path, err)
					return
				}
				_, got, err := Load(b, path)
				if err != nil {
					t.Errorf("%s: %v", path, err)
				} else if diff := Equal(got, []Blob{shared, own}); diff != "" {
					t.Errorf("%s: %s", path, diff)
				}
				if j%3 == 2 {
					if err := b.Delete(ctx, parse(path)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	work.Go(func() {
		for range 4 {
			b.collect()
		}
	})
	work.Wait()
	b.reopen()
	for i := range 4 {
		for j := range 2 {
			b.has(fmt.Sprintf("tinker://run%d/weights/%d", i, j), shared, Floats("own", 30_000, uint64(i*10+j+3)))
		}
		b.lacks(fmt.Sprintf("tinker://run%d/weights/2", i))
	}
}
