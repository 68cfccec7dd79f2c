package plugins

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// TestRefusedModules: what is not accepted is named, before it runs and before it costs anything.
func TestRefusedModules(t *testing.T) {
	h := openHost(t, Options{Limits: Limits{ModuleBytes: 4 << 20}})
	other := load(t, h, crossEntropy().build())
	ce := func(edit func(g *guest)) func() []byte {
		return func() []byte {
			g := crossEntropy()
			edit(g)
			return g.build()
		}
	}
	// with adds a function that nobody calls.
	with := func(locals string, code ...[]byte) func() []byte {
		return ce(func(g *guest) { g.fn("", "", locals, code...) })
	}
	for _, c := range []struct {
		name, want string
		binary     func() []byte
	}{
		{"nothing", "does not begin like a WebAssembly module", func() []byte { return nil }},
		{"a component", "does not begin like", func() []byte { return []byte("\x00asm\x0d\x00\x01\x00") }},
		{"too large", "the module has 4194305 bytes, the limit is 4194304", func() []byte { return make([]byte, 4<<20+1) }},
		{"truncated", "the module ends too early", func() []byte { b := crossEntropy().build(); return b[:len(b)-9] }},
		{"unknown import", `imports "socket" from "env", which the ABI does not offer`, ce(func(g *guest) { g.imp("env", "socket", i32, i32); g.call = ic(0) })},
		{"the meter", `imports "meter" from "tinkerlocal"`, ce(func(g *guest) { g.imp(meterModule, meterName, meterType.params, meterType.results); g.call = ic(0) })},
		{"import of another type", "imports loss_host log as (i32) -> (), wanted (i32, i32, i32) -> ()", ce(func(g *guest) { g.imp("loss_host", "log", i32, ""); g.call = ic(0) })},
		{"imported memory", `import "env" "memory" is a memory, only functions are imported`, func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secImport, join(op(1), appendName(appendName(nil, "env"), "memory"), op(2, 0, 1)))
		}},
		{"imported table", "is a table", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secImport, join(op(1), appendName(appendName(nil, "env"), "t"), op(1, 0x70, 0, 1)))
		}},
		{"imported global", "is a global", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secImport, join(op(1), appendName(appendName(nil, "env"), "g"), op(3, 0x7f, 1)))
		}},
		{"no exports", "does not export loss_abi_version () -> (i32)", func() []byte { return newAssembler(1).bytes() }},
		{"export of another type", "its export loss_call is (i32) -> (i32), wanted (i32, i32) -> (i32)", func() []byte {
			g := crossEntropy()
			b := g.build()
			g.funcs[len(g.funcs)-1].typ = g.typ(i32, i32)
			return append(b[:0], g.bytes()...)
		}},
		{"export that is a memory", "its export _initialize is a memory, wanted a function", ce(func(g *guest) { g.exports = append(g.exports, exported{"_initialize", 2, 0}) })},
		{"memory not exported", `does not export its memory`, ce(func(g *guest) { g.exports = nil })},
		{"too much memory", "its memory has at least 4097 pages, the limit is 4096", ce(func(g *guest) { g.pages = 4097 })},
		{"two memories", "2 memories, the limit is 1", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secMemory, op(2, 0, 1, 0, 1))
		}},
		{"shared memory", "shared and 64-bit memories are not accepted", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secMemory, op(1, 3, 1, 1))
		}},
		{"huge table", "the tables have more than 100000 elements", ce(func(g *guest) { g.tables = append(g.tables, join(op(0x70, 0), appendU32(nil, 100_001))) })},
		{"many tables", "the tables have more than", ce(func(g *guest) {
			g.tables = append(g.tables, join(op(0x70, 0), appendU32(nil, 60_000)), join(op(0x70, 0), appendU32(nil, 60_000)))
		})},
		{"threads", "opcode 0xfe is not in WebAssembly core 2.0", with("", op(0xfe, 3, 0))},
		{"tail call", "opcode 0x12 is not in WebAssembly core 2.0", with("", op(0x12, 0))},
		{"exceptions", "opcode 0x08", with("", op(0x08, 0))},
		{"relaxed vectors", "opcode 0xfd 256", with("", vec(256))},
		{"reaching for the fuel", "the module is not valid: invalid function", with("", lc(1<<62), gset(0))},
		{"reaching for the fuel behind own globals", "is not valid", ce(func(g *guest) {
			g.globals = append(g.globals, join(op(0x7e, 1), lc(0), op(opEnd)))
			g.fn("", "", "", lc(1<<62), gset(1))
		})},
		{"reaching for the depth", "is not valid", with("", lc(1<<62), gset(1))},
		{"calling the meter", "is not valid", ce(func(g *guest) { g.fn("", "", "", lc(0), call1(5)) })},
		{"exporting the fuel", "is not valid", ce(func(g *guest) { g.exports = append(g.exports, exported{"f", 3, 0}) })},
		{"locals of the rewriter", "is not valid", with("", get(0), op(drop))},
		{"type error", "is not valid", with("", lc(0), ic(0), op(i32Add, drop))},
		{"a bomb of statements", "the limit is 262144", with("", bytes.Repeat(join(ic(0), ic(1), mem(i32Store, 0)), 200_000))},
		{"a bomb of blocks", "blocks are nested more than 1000 deep", with("", bytes.Repeat(op(opBlock, 0x40), 5000), bytes.Repeat(op(opEnd), 5000))},
		{"a bomb of locals", "too much to compile", with(strings.Repeat(i32, 5000), func() (b []byte) {
			for i := range 5000 {
				b = append(b, join(get(i), iff(get(i), set((i*7)%5000)))...)
			}
			return b
		}())},
		{"a bomb of joins", "too much to compile", with(i32, bytes.Repeat(join(get(0), iff(ic(1), set(0))), 8000))},
		{"a bomb of labels", "too much to compile", with("", blk(ic(0), op(opBrTable), appendU32(nil, 60_000), make([]byte, 60_001)))},
		{"four billion locals", "more than 10000 locals", ce(func(g *guest) { g.raw("", "", join(op(1), appendU32(nil, 1<<32-1), op(0x7f)), nil) })},
		{"four billion types", "4294967295 types, the limit is 2000", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secType, appendU32(nil, 1<<32-1))
		}},
		{"four billion parameters", "4294967295 parameters", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secType, join(op(1, 0x60), appendU32(nil, 1<<32-1)))
		}},
		{"four billion elements", "4294967295 elements", ce(func(g *guest) {
			g.tables = append(g.tables, op(0x70, 0, 1))
			g.elems = append(g.elems, join(op(0), ic(0), op(opEnd), appendU32(nil, 1<<32-1)))
		})},
		{"many results", "17 results, the limit is 16", ce(func(g *guest) { g.typ("", strings.Repeat(i32, 17)) })},
		{"function without code", "3 functions are declared", func() []byte {
			return appendSection(appendSection([]byte("\x00asm\x01\x00\x00\x00"), secType, op(1, 0x60, 0, 0)), secFunction, op(3, 0, 0, 0))
		}},
		{"a section twice", "section 1 is unknown, repeated or out of order", func() []byte {
			b := appendSection([]byte("\x00asm\x01\x00\x00\x00"), secType, op(0))
			return appendSection(b, secType, op(0))
		}},
		{"a section that lies about its size", "ends 1 bytes before its stated size", func() []byte {
			return appendSection([]byte("\x00asm\x01\x00\x00\x00"), secType, op(0, 0))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			binary := c.binary()
			var took time.Duration
			var grown uint64
			for range patience { // as in promptly
				start := time.Now()
				grown = heapGrowth(func() {
					if _, err := h.Check(context.Background(), binary); err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("got %v, wanted %q", err, c.want)
					}
				})
				if took = time.Since(start); took <= 500*time.Millisecond {
					break
				}
			}
			if timed && took > 500*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if most := uint64(1<<20 + 40*len(binary)); grown > most {
				t.Errorf("refusing %d bytes took %d of memory, wanted at most %d", len(binary), grown, most)
			}
		})
	}
	if _, err := other.tryOut(context.Background(), must(other.madeUp(4, 5, true))); err != nil {
		t.Error(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestLyingMetadata: the metadata is held to what it says by the self-test.
func TestLyingMetadata(t *testing.T) {
	h := openHost(t, Options{})
	with := func(meta string, edit func(g *guest)) []byte {
		g := crossEntropy()
		g.meta = meta
		if edit != nil {
			edit(g)
		}
		return g.build()
	}
	counter := func(g *guest) { // keeps state: a global, and memory
		g.globals = append(g.globals, join(op(0x7c, 1), dc(0), op(opEnd)))
		g.call = join(g.call[:len(g.call)-2], gget(0), dc(1), op(f64Add), gset(0), get(0), gget(0), mem(f64Store, offOutLoss), ic(0))
	}
	for _, c := range []struct {
		name, want string
		binary     []byte
	}{
		{"more memory than there is", "it needs 5000 pages of memory, the limit is 4096", with(`{"name":"a","version":"1","min_memory_pages":5000}`, nil)},
		{"no derivative", "all weights are zero", func() []byte {
			g := newGuest(crossEntropyMeta, get(0), dc(1), mem(f64Store, offOutLoss), ic(0))
			return g.build()
		}()},
		{"fewer inputs than it reads", "self-test: ", with(strings.Replace(crossEntropyMeta, `"inputs":[{"name":"weights","dtype":"float32","like":"logprobs"}],`, "", 1), func(g *guest) {
			g.call = join(columnData(1, 2), get(2), op(i32Eqz), iff(op(unreachable)), columnData(9, 2), get(2), mem(i32Load, 0), op(drop), g.call)
		})},
		{"state between calls does not exist", "", with(crossEntropyMeta, counter)},
	} {
		_, err := h.Check(context.Background(), c.binary)
		if c.want == "" && err == nil {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, wanted %q", c.name, err, c.want)
		}
	}

	wrong := crossEntropy() // weights with the other sign
	wrong.call = bytes.Replace(wrong.call, join(get(4), get(3), mem(f32Load, 0), mem(f32Store, 0)), join(get(4), get(3), mem(f32Load, 0), op(f32Neg), mem(f32Store, 0)), 1)
	r, err := h.Check(context.Background(), wrong.build())
	if err != nil || r.Error < 1.9 || len(r.Warnings) == 0 || !strings.Contains(r.Warnings[0], "the weights do not fit the loss") {
		t.Errorf("the other sign: %+v, %v", r, err)
	}
}
