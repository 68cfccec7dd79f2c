package plugins

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"tinkerlocal/engine/api"
)

// reader of a request, as a guest would read it: by ABI.md, not by the host's own code.
type guestView []byte

func (v guestView) u32(at int) int { return int(binary.LittleEndian.Uint32(v[at:])) }

// TestRequest: everything in a request is where its header says, and nothing overlaps.
func TestRequest(t *testing.T) {
	m := must(parseMeta([]byte(`{"name":"p","version":"1","scope":"group","grouping":{"by":"consecutive","size":2},"inputs":[
		{"name":"target_tokens","dtype":"int64","like":"logprobs"},{"name":"w","dtype":"float32","like":"logprobs"},
		{"name":"adv","dtype":"float32","like":"logprobs","optional":true},{"name":"id","dtype":"int64","shape":[1]}],
		"params":[{"name":"beta","type":"number","default":0.25}]}`)))
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		data, logProbs := randomBatch(rng)
		checkRequest(t, m, data, logProbs)
	}
}

// randomBatch fits the metadata of TestRequest.
func randomBatch(rng *rand.Rand) ([]api.Datum, [][]float32) {
	var data []api.Datum
	var logProbs [][]float32
	for range 2 * (1 + rng.IntN(6)) {
		n, k := rng.IntN(9), 1+rng.IntN(2)
		shape := []int{n}
		if k > 1 {
			shape = []int{n, k}
		}
		floats := func() []float32 {
			v := make([]float32, n*k)
			for i := range v {
				v[i] = rng.Float32()
			}
			return v
		}
		tokens := make([]int64, n*k)
		for i := range tokens {
			tokens[i] = rng.Int64()
		}
		d := map[string]api.TensorData{
			"target_tokens": {Ints: tokens, Shape: shape}, "w": {Floats: floats(), Shape: shape}, "id": api.Ints([]int64{rng.Int64()}),
		}
		if rng.IntN(2) == 0 {
			d["adv"] = api.TensorData{Floats: floats(), Shape: shape}
		}
		data, logProbs = append(data, api.Datum{LossInputs: d}), append(logProbs, floats())
	}
	return data, logProbs
}

func checkRequest(t *testing.T, m *Meta, data []api.Datum, logProbs [][]float32) {
	t.Helper()
	b := must(m.prepare(data, logProbs, nil))
	done := 0
	for _, c := range m.cut(b, 20) {
		l := must(m.plan(b, &c))
		view := make(guestView, l.total)
		for i := range view {
			view[i] = 0xa5 // what the guest's memory may hold
		}
		l.fill(view, b, &c)
		used := make([]int, l.total)
		claim := func(at, n int) {
			if at%16 != 0 || at < headerSize && n > 0 && at != 0 || at+n > l.total {
				t.Fatalf("%d bytes at %d of %d", n, at, l.total)
			}
			for i := at; i < at+n; i++ {
				if used[i]++; used[i] > 1 {
					t.Fatalf("byte %d is used twice", i)
				}
			}
		}
		n := c.hi - c.lo
		claim(0, headerSize)
		if view.u32(0) != 0x53534f4c || view.u32(4) != 0x10000 || view.u32(8) != l.total || view.u32(16) != n || view.u32(20) != 5 ||
			view.u32(52) != c.elems || view.u32(60) != 64 || view.u32(68) != 4096 || view.u32(76) != n/2 || view.u32(108) != c.index || view.u32(36) != 1 {
			t.Fatalf("header % x", view[:headerSize])
		}
		want := [3]int{len(data), b.elems, len(data) / 2}
		if got := [3]int{view.u32(72), view.u32(80), view.u32(104)}; got != want {
			t.Fatalf("the batch's sizes are %v, wanted %v", got, want)
		}
		if !math.IsNaN(math.Float64frombits(binary.LittleEndian.Uint64(view[96:]))) || view.u32(88) != 0 || view.u32(92) != 0 {
			t.Fatal("the outputs are not empty")
		}
		claim(view.u32(24), 5*32)
		claim(view.u32(28), 4*n)
		claim(view.u32(32), 8)
		claim(view.u32(40), view.u32(44))
		claim(view.u32(56), 64*64)
		claim(view.u32(64), 4096)
		claim(view.u32(48), 4*c.elems)
		if string(view[view.u32(40):][:view.u32(44)]) != `{"beta":0.25}` || math.Float64frombits(binary.LittleEndian.Uint64(view[view.u32(32):])) != 0.25 {
			t.Fatal("configuration")
		}
		spans := map[int]bool{}
		names := ""
		firstName := l.total
		for k := range 5 {
			at := view.u32(24) + 32*k
			name := string(view[view.u32(at):][:view.u32(at+4)])
			firstName = min(firstName, view.u32(at))
			names += name
			size := 4
			if view.u32(at+8) == 2 {
				size = 8
			}
			claim(view.u32(at+16), size*view.u32(at+20))
			if s := view.u32(at + 12); !spans[s] {
				spans[s] = true
				claim(s, 16*n)
			}
			next := 0
			for i := range n {
				span := view.u32(at+12) + 16*i
				x, present := data[c.lo+i].LossInputs[name], true
				if name == "$logprobs" {
					x = api.Floats(logProbs[c.lo+i])
				} else if _, present = data[c.lo+i].LossInputs[name]; !present {
					if view.u32(span+4) != 0 || view.u32(span+12) != 0 {
						t.Fatalf("%s: an absent tensor has a span", name)
					}
					continue
				}
				if view.u32(span) != next || view.u32(span+4)*view.u32(span+8) != x.Len() || view.u32(span+12) != 1 {
					t.Fatalf("%s: span of datum %d is wrong", name, i)
				}
				for j := range x.Len() {
					e := view[view.u32(at+16)+size*(next+j):]
					if size == 8 && int64(binary.LittleEndian.Uint64(e)) != x.Ints[j] || size == 4 && binary.LittleEndian.Uint32(e) != math.Float32bits(x.Floats[j]) {
						t.Fatalf("%s: datum %d, element %d is wrong", name, i, j)
					}
				}
				next += x.Len()
			}
			if next != view.u32(at+20) {
				t.Fatalf("%s has %d elements, its spans %d", name, view.u32(at+20), next)
			}
		}
		if names != "$logprobstarget_tokenswadvid" {
			t.Fatalf("columns %s", names)
		}
		claim(firstName, len(names))
		for i, u := range used {
			if u == 0 && view[i] != 0 {
				t.Fatalf("byte %d is left over from before", i)
			}
		}
		for i := range c.elems {
			if view.u32(view.u32(48)+4*i) != 0 {
				t.Fatal("the weights are not zero")
			}
		}
		done = c.hi
	}
	if done != len(data) {
		t.Fatalf("%d datums were sent of %d", done, len(data))
	}
}

// FuzzRequest lays out batches of every shape.
func FuzzRequest(f *testing.F) {
	m := must(parseMeta([]byte(`{"name":"p","version":"1","scope":"group","grouping":{"by":"consecutive","size":2},"inputs":[
		{"name":"target_tokens","dtype":"int64","like":"logprobs"},{"name":"w","dtype":"float32","like":"logprobs"},
		{"name":"adv","dtype":"float32","like":"logprobs","optional":true},{"name":"id","dtype":"int64","shape":[1]}],
		"params":[{"name":"beta","type":"number","default":0.25}]}`)))
	f.Add(uint64(1))
	f.Add(uint64(2))
	f.Fuzz(func(t *testing.T, seed uint64) {
		data, logProbs := randomBatch(rand.New(rand.NewPCG(seed, 2)))
		checkRequest(t, m, data, logProbs)
	})
}

// TestFloats: numbers come back as they were; all that is not one of at most the limit's size is found, in every place; also on a machine whose
// numbers lie in memory in another order.
func TestFloats(t *testing.T) {
	defer func(v bool) { little = v }(little)
	for _, little = range []bool{little, false} {
		for n := range 20 {
			for i := range n {
				for _, c := range []struct {
					v  float32
					ok bool
				}{
					{1e6, true}, {-1e6, true}, {0, true}, {float32(math.Copysign(0, -1)), true}, {math.SmallestNonzeroFloat32, true},
					{math.Nextafter32(1e6, 2e6), false}, {-1.5e6, false}, {math.MaxFloat32, false},
					{float32(math.Inf(1)), false}, {float32(math.Inf(-1)), false}, {float32(math.NaN()), false}, {math.Float32frombits(0xffffffff), false},
				} {
					v := make([]float32, n)
					v[i] = c.v
					b := make([]byte, 4*n)
					if putFloats(b, v) != 4*n || binary.LittleEndian.Uint32(b[4*i:]) != math.Float32bits(c.v) {
						t.Fatalf("%v at %d of %d: bytes % x", c.v, i, n, b)
					}
					if got, ok := takeFloats(b, math.Float32bits(1e6)); ok != c.ok || !sameBits([][]float32{got}, [][]float32{v}) {
						t.Errorf("%v at %d of %d: %v, %v", c.v, i, n, ok, got)
					}
				}
			}
			v, b := make([]int64, n), make([]byte, 8*n)
			for i := range v {
				v[i] = int64(i+1) << (4 * i)
			}
			if putInts(b, v) != 8*n {
				t.Fatal("length")
			}
			for i, x := range v {
				if binary.LittleEndian.Uint64(b[8*i:]) != uint64(x) {
					t.Fatalf("%d of %d: bytes % x", i, n, b)
				}
			}
		}
	}
}

// TestWithin: among numbers whose bits together are those of none of them.
func TestWithin(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		b := make([]byte, 4*rng.IntN(70))
		most, want := rng.Uint32()>>1, true
		for i := 0; i < len(b); i += 4 {
			v := rng.Uint32()
			if rng.IntN(20) > 0 {
				v = v&(1<<31) | v&^(1<<31)%(most+1) // small enough
			}
			binary.LittleEndian.PutUint32(b[i:], v)
			want = want && v&^(1<<31) <= most
		}
		if within(b, most) != want {
			t.Fatalf("%d numbers, at most %08x: got %v", len(b)/4, most, !want)
		}
	}
}
