package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

// model is what a store ought to hold: the obvious way.
type model struct {
	items []item // in the order of the saves
	now   func() time.Time
}

type item struct {
	path    string
	blobs   []Blob
	public  bool
	expires time.Time
}

func (m *model) find(path string) *item {
	for i := range m.items {
		if it := &m.items[i]; it.path == path {
			if it.expires.IsZero() || m.now().Before(it.expires) {
				return it
			}
		}
	}
	return nil
}

func (m *model) remove(path string) {
	m.items = slices.DeleteFunc(m.items, func(it item) bool { return it.path == path })
}

func (m *model) save(path string, o api.SaveOptions, blobs []Blob) bool {
	if m.find(path) != nil && !o.Overwrite {
		return false
	}
	m.remove(path)
	if o.KeepLast > 0 {
		p, kept := parse(path), 1
		for i := len(m.items) - 1; i >= 0; i-- {
			it := m.items[i]
			if q := parse(it.path); q.Run != p.Run || q.Kind != p.Kind || it.public || m.find(it.path) == nil {
				continue
			}
			if kept++; kept > o.KeepLast {
				m.items = slices.Delete(m.items, i, i+1)
			}
		}
	}
	it := item{path: path, blobs: blobs}
	if o.TTL > 0 {
		it.expires = m.now().Add(o.TTL)
	}
	m.items = append(m.items, it)
	return true
}

// Random does the same random operations to a store and to the model, and compares them after each.
func Random(t *testing.T, open Maker, seed uint64, steps int) {
	b := newBench(t, open)
	m := &model{now: b.clock.Now}
	rng := rand.New(rand.NewPCG(seed, 5))
	agree := func(what string, err error, ok bool) {
		t.Helper()
		if (err == nil) != ok || err != nil && api.CodeOf(err) != api.NotFound && api.CodeOf(err) != api.BadRequest {
			t.Fatalf("%s: got error %v, wanted success %t", what, err, ok)
		}
	}
	for step := range steps {
		path := fmt.Sprintf("tinker://run%d/%s/%d", rng.IntN(2), []string{api.KindState, api.KindSampler, api.KindExternal}[rng.IntN(3)], rng.IntN(4))
		p, it := parse(path), m.find(path)
		what := fmt.Sprintf("step %d: %s", step, path)
		switch k := rng.IntN(20); {
		case k < 7:
			o := api.SaveOptions{Overwrite: rng.IntN(2) == 0, KeepLast: max(0, rng.IntN(5)-1), TTL: max(0, time.Duration(rng.IntN(10)-5)*time.Minute)}
			var blobs []Blob
			for i := range rng.IntN(4) {
				blobs = append(blobs, Floats(fmt.Sprint("t", i), rng.IntN(3)*1500+rng.IntN(2)*(rng.IntN(2)*260_000), uint64(rng.IntN(4))))
			}
			_, err := Save(b, path, o, blobs...)
			agree(what+" save", err, m.save(path, o, blobs))
		case k < 9:
			agree(what+" delete", b.Delete(ctx, p), it != nil)
			if it != nil {
				m.remove(path)
			}
		case k < 11:
			agree(what+" set ttl", b.SetTTL(ctx, p, time.Minute), it != nil)
			if it != nil {
				it.expires = m.now().Add(time.Minute)
			}
		case k < 12:
			agree(what+" clear ttl", b.ClearTTL(ctx, p), it != nil)
			if it != nil {
				it.expires = time.Time{}
			}
		case k < 14:
			public := rng.IntN(2) == 0
			f := b.Unpublish
			if public {
				f = b.Publish
			}
			agree(what+" publish", f(ctx, p), it != nil)
			if it != nil {
				it.public = public
			}
		case k < 16:
			b.clock.T = b.clock.T.Add(time.Duration(rng.IntN(200)-80) * time.Second)
		case k < 17:
			b.collect()
		case k < 18 && rng.IntN(4) == 0:
			b.reopen()
		default:
			if it != nil {
				b.has(path, it.blobs...)
			} else {
				b.lacks(path)
			}
		}
		var want []string
		for _, it := range slices.Backward(m.items) {
			if m.find(it.path) != nil {
				want = append(want, it.path)
			}
		}
		if got := b.list(api.CheckpointQuery{}); !slices.Equal(got, want) {
			t.Fatalf("%s: the store lists %v, wanted %v", what, got, want)
		}
	}
	b.collect()
	b.reopen()
	for _, it := range m.items {
		if m.find(it.path) != nil {
			b.has(it.path, it.blobs...)
		}
	}
}
