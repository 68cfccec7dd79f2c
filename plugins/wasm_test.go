package plugins

import (
	"encoding/binary"
	"math"
)

// A small assembler of modules, so that every module that the tests run has its source here.

// assembler collects the parts of a module.
type assembler struct {
	types   []signature
	imports []imported
	funcs   []asmFunc
	pages   uint32
	maximum int64 // of the memory's pages; -1: none
	tables  [][]byte
	globals [][]byte
	exports []exported
	start   int
	elems   [][]byte
	data    [][]byte
	extra   []byte // sections appended as they are
}

type asmFunc struct {
	typ    uint32
	locals []byte // declared, with their count
	code   []byte
}

func newAssembler(pages uint32) *assembler {
	return &assembler{pages: pages, maximum: -1, start: -1, exports: []exported{{exportMemory, 2, 0}}}
}

func (a *assembler) typ(params, results string) uint32 {
	s := signature{params, results}
	for i, t := range a.types {
		if t == s {
			return uint32(i)
		}
	}
	a.types = append(a.types, s)
	return uint32(len(a.types) - 1)
}

// imp adds an import; all imports come before the functions.
func (a *assembler) imp(module, name, params, results string) uint32 {
	a.imports = append(a.imports, imported{module, name, a.typ(params, results)})
	return uint32(len(a.imports) - 1)
}

// fn adds a function with local variables of the given types; its index is returned.
func (a *assembler) fn(params, results, locals string, code ...[]byte) uint32 {
	decl := appendU32(nil, uint32(len(locals)))
	for i := range len(locals) {
		decl = append(decl, 1, locals[i])
	}
	return a.raw(params, results, decl, join(code...))
}

func (a *assembler) raw(params, results string, locals, code []byte) uint32 {
	a.funcs = append(a.funcs, asmFunc{a.typ(params, results), locals, code})
	return uint32(len(a.imports) + len(a.funcs) - 1)
}

func (a *assembler) export(name string, f uint32) {
	a.exports = append(a.exports, exported{name, 0, f})
}

// segment puts bytes into memory.
func (a *assembler) segment(at int, b []byte) {
	a.data = append(a.data, join([]byte{0}, ic(at), []byte{opEnd}, appendSized(nil, b)))
}

func vector(items [][]byte) []byte {
	return append(appendU32(nil, uint32(len(items))), join(items...)...)
}

func (a *assembler) bytes() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	var types, imports, funcs, exports, code [][]byte
	for _, t := range a.types {
		types = append(types, appendName(appendName([]byte{0x60}, t.params), t.results))
	}
	for _, i := range a.imports {
		imports = append(imports, appendU32(append(appendName(appendName(nil, i.module), i.name), 0), i.typ))
	}
	for _, f := range a.funcs {
		funcs = append(funcs, appendU32(nil, f.typ))
		code = append(code, appendSized(nil, join(f.locals, f.code, []byte{opEnd})))
	}
	for _, e := range a.exports {
		exports = append(exports, appendU32(append(appendName(nil, e.name), e.kind), e.index))
	}
	out = appendSection(out, secType, vector(types))
	if len(imports) > 0 {
		out = appendSection(out, secImport, vector(imports))
	}
	out = appendSection(out, secFunction, vector(funcs))
	if len(a.tables) > 0 {
		out = appendSection(out, secTable, vector(a.tables))
	}
	memory := appendU32([]byte{0}, a.pages)
	if a.maximum >= 0 {
		memory = appendU32(appendU32([]byte{1}, a.pages), uint32(a.maximum))
	}
	out = appendSection(out, secMemory, vector([][]byte{memory}))
	if len(a.globals) > 0 {
		out = appendSection(out, secGlobal, vector(a.globals))
	}
	out = appendSection(out, secExport, vector(exports))
	if a.start >= 0 {
		out = appendSection(out, secStart, appendU32(nil, uint32(a.start)))
	}
	if len(a.elems) > 0 {
		out = appendSection(out, secElement, vector(a.elems))
	}
	out = appendSection(out, secDataCount, appendU32(nil, uint32(len(a.data))))
	out = appendSection(out, secCode, vector(code))
	out = appendSection(out, secData, vector(a.data))
	return append(out, a.extra...)
}

func join(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// Instructions.

func op(b ...byte) []byte { return b }

func ic(v int) []byte   { return appendS64([]byte{opI32Const}, int64(int32(v))) }
func lc(v int64) []byte { return appendS64([]byte{opI64Const}, v) }
func fc(v float32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0x43}, math.Float32bits(v))
}
func dc(v float64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{0x44}, math.Float64bits(v))
}

func get(l int) []byte          { return appendU32([]byte{opLocalGet}, uint32(l)) }
func set(l int) []byte          { return appendU32([]byte{opLocalSet}, uint32(l)) }
func tee(l int) []byte          { return appendU32([]byte{opLocalTee}, uint32(l)) }
func gget(g int) []byte         { return appendU32([]byte{opGlobalGet}, uint32(g)) }
func gset(g int) []byte         { return appendU32([]byte{opGlobalSet}, uint32(g)) }
func call1(f uint32) []byte     { return appendU32([]byte{opCall}, f) }
func br(depth int) []byte       { return appendU32([]byte{opBr}, uint32(depth)) }
func brIf(depth int) []byte     { return appendU32([]byte{opBrIf}, uint32(depth)) }
func misc1(sub byte) []byte     { return []byte{opMisc, sub} }
func vec(sub uint32) []byte     { return appendU32([]byte{opSIMD}, sub) }
func blk(code ...[]byte) []byte { return join(op(opBlock, 0x40), join(code...), op(opEnd)) }
func lop(code ...[]byte) []byte { return join(op(opLoop, 0x40), join(code...), op(opEnd)) }
func iff(code ...[]byte) []byte { return join(op(opIf, 0x40), join(code...), op(opEnd)) }

// mem is a load or store at an offset.
func mem(opcode byte, offset int) []byte { return appendU32([]byte{opcode, 0}, uint32(offset)) }

func vmem(sub uint32, offset int) []byte {
	return appendU32(append(vec(sub), 0), uint32(offset))
}

const (
	i32Load, i64Load, f32Load, f64Load     = 0x28, 0x29, 0x2a, 0x2b
	i32Store, i64Store, f32Store, f64Store = 0x36, 0x37, 0x38, 0x39
	i32Eqz, i32LtU, i32GeU, i32Add, i32Sub = 0x45, 0x49, 0x4f, 0x6a, 0x6b
	i32Mul, i32And, i32Shl, i32ShrU        = 0x6c, 0x71, 0x74, 0x76
	f32Add, f32Sub, f32Mul, f32Neg         = 0x92, 0x93, 0x94, 0x8c
	f64Add, f64Sub, f64Mul, f64Div, f64Neg = 0xa0, 0xa1, 0xa2, 0xa3, 0x9a
	f32Demote, f64Promote                  = 0xb6, 0xbb
	unreachable, drop                      = 0x00, 0x1a
)

// guest is a module that keeps to the ABI; tests replace what they want to be wrong.
type guest struct {
	*assembler
	meta     string
	version  []byte // code of each export
	describe []byte // nil: the metadata
	alloc    []byte
	call     []byte // locals: 0 request, 1 length, then callLocals
	locals   string
}

// heap is where the request goes; the metadata is below it.
const heap = 64 << 10

func newGuest(meta string, call ...[]byte) *guest {
	return &guest{
		assembler: newAssembler(2), meta: meta,
		version: ic(abiMajor<<16 | abiMinor),
		alloc: join( // grow to heap + size, or answer 0
			get(0), ic(heap+65535), op(i32Add), ic(16), op(i32ShrU), op(0x3f, 0), op(i32Sub), tee(0),
			ic(0), op(0x4a), // gt_s
			iff(get(0), op(opMemoryGrow, 0), ic(-1), op(0x46), iff(ic(0), op(opReturn))),
			ic(heap)),
		call: join(call...),
	}
}

func (g *guest) build() []byte {
	g.segment(1024, []byte(g.meta))
	if g.describe == nil {
		g.describe = lc(1024<<32 | int64(len(g.meta)))
	}
	g.export(exportVersion, g.fn("", i32, "", g.version))
	g.export(exportDescribe, g.fn("", i64, "", g.describe))
	g.export(exportAlloc, g.fn(i32, i32, "", g.alloc))
	g.export(exportCall, g.fn(i32+i32, i32, g.locals, g.call))
	return g.bytes()
}

const (
	f32 = "\x7d"
	f64 = "\x7c"
)
