package plugins

import (
	"fmt"
	"slices"

	"tinkerlocal/engine/api"
)

// Limits of a module's shape, beyond its size. They keep what an instance takes and what the compiler does with it
// in proportion; modules of C, Rust, AssemblyScript and Go stay far below all of them.
const (
	maxTypes    = 2_000 // wazero remembers each that it has seen
	maxParams   = 128
	maxResults  = 16
	maxImports  = 64
	maxFuncs    = 50_000
	maxTables   = 8
	maxElements = 100_000 // in all tables, now and grown
	maxGlobals  = 10_000
	maxExports  = 10_000
	maxSegments = 100_000 // Go makes one of each run of bytes without zeros
	maxNesting  = 1_000
	maxLocals   = 10_000
	maxBody     = 256 << 10 // bytes of one function

	// The compiler's time and memory grow with a function's instructions, and with its joins times its locals, for each
	// of which it may keep a value. Both together are a function's weight; see weigh.
	maxFuncWeight   = 60_000
	maxModuleWeight = 1_500_000
)

// Sections of a binary, by id; their order is that of sectionOrder.
const (
	secType = iota + 1
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
)

var sectionOrder = []byte{secType, secImport, secFunction, secTable, secMemory, secGlobal, secExport, secStart, secElement, secDataCount, secCode, secData}

// signature is a function type. Types are bytes of the binary format.
type signature struct{ params, results string }

func (s signature) String() string {
	return fmt.Sprintf("(%s) -> (%s)", typeNames(s.params), typeNames(s.results))
}

func typeNames(types string) (s string) {
	names := map[byte]string{0x7f: "i32", 0x7e: "i64", 0x7d: "f32", 0x7c: "f64", 0x7b: "v128", 0x70: "funcref", 0x6f: "externref"}
	for i := range len(types) {
		if i > 0 {
			s += ", "
		}
		s += names[types[i]]
	}
	return s
}

const (
	i32 = "\x7f"
	i64 = "\x7e"
)

type imported struct {
	module, name string
	typ          uint32
}

type exported struct {
	name  string
	kind  byte // 0 function, 1 table, 2 memory, 3 global
	index uint32
}

// module is a binary's parts. What the rewriter only moves is kept as bytes of the original.
type module struct {
	types    []signature
	rawTypes []byte // the section's entries, without their count
	imports  []imported
	rawImps  []byte
	funcs    []uint32 // types of the module's own functions
	tables   []tableType
	memory   []byte
	pages    uint32
	memories int
	globals  int
	rawGlobs []byte // with functions shifted
	exports  []exported
	start    int // -1: none
	elements []byte
	data     []byte
	dataSegs []byte // the data count section
	bodies   []body
	reserved uint32 // elements of all tables
	weight   int
}

type tableType struct {
	elem     byte
	min, max uint32
}

// typeOf is the signature of function index i of the original, or none.
func (m *module) typeOf(i uint32) (signature, bool) {
	t := uint32(len(m.types))
	if n := uint32(len(m.imports)); i < n {
		t = m.imports[i].typ
	} else if i -= n; i < uint32(len(m.funcs)) {
		t = m.funcs[i]
	}
	if t >= uint32(len(m.types)) {
		return signature{}, false
	}
	return m.types[t], true
}

// scan takes a binary apart, allocates no more than a small multiple of its size whatever it says, and holds it to the limits. It does not validate:
// wazero does, and must not see a binary before this, because it trusts the numbers in it.
func scan(src []byte) (*module, error) {
	m, err := scanSections(src)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "not a module that is accepted: %w", err)
	}
	return m, nil
}

func scanSections(src []byte) (*module, error) {
	if len(src) < 8 || string(src[:8]) != "\x00asm\x01\x00\x00\x00" {
		return nil, fmt.Errorf("it does not begin like a WebAssembly module of version 1")
	}
	m := &module{start: -1}
	r := &reader{b: src, at: 8}
	last := -1
	for r.more() {
		id := r.byte()
		s := r.sub(r.u32())
		if r.err != nil {
			return nil, r.err
		}
		if id == 0 {
			s.name()
			if s.err != nil {
				return nil, s.err
			}
			continue // names and debug information: their indices would have to be shifted
		}
		rank := slices.Index(sectionOrder, id)
		if rank <= last {
			return nil, fmt.Errorf("byte %d: section %d is unknown, repeated or out of order", r.at, id)
		}
		last = rank
		if err := m.section(id, s); err != nil {
			return nil, err
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	if len(m.bodies) != len(m.funcs) {
		return nil, fmt.Errorf("%d functions are declared, %d have code", len(m.funcs), len(m.bodies))
	}
	return m, nil
}

func (m *module) section(id byte, s *reader) error {
	start := s.at
	switch id {
	case secType:
		n := s.count("types", maxTypes)
		start = s.at
		for range n {
			if s.byte() != 0x60 {
				s.fail("a type is not a function's")
			}
			params := s.bytes(s.count("parameters", maxParams))
			m.types = append(m.types, signature{string(params), string(s.bytes(s.count("results", maxResults)))})
			if s.err != nil {
				break
			}
		}
		m.rawTypes = s.b[start:s.at]
	case secImport:
		n := s.count("imports", maxImports)
		start = s.at
		for range n {
			i := imported{module: s.name(), name: s.name()}
			if kind := s.byte(); s.err == nil && kind != 0 {
				s.fail("import %q %q is a %s, only functions are imported", clip(i.module, 64), clip(i.name, 64), kindName(kind))
			}
			i.typ = s.u32()
			m.imports = append(m.imports, i)
		}
		m.rawImps = s.b[start:s.at]
	case secFunction:
		n := s.count("functions", maxFuncs)
		m.funcs = make([]uint32, n)
		for i := range m.funcs {
			m.funcs[i] = s.u32()
		}
	case secTable:
		m.scanTables(s)
	case secMemory:
		m.memories = s.count("memories", 1)
		for range m.memories {
			m.pages = m.scanMemory(s)
		}
		m.memory = s.b[start:s.at]
	case secGlobal:
		m.globals = s.count("globals", maxGlobals)
		for range m.globals {
			m.rawGlobs = append(m.rawGlobs, s.bytes(2)...)
			m.rawGlobs = m.constant(m.rawGlobs, s)
		}
	case secExport:
		for range s.count("exports", maxExports) {
			m.exports = append(m.exports, exported{name: s.name(), kind: s.byte(), index: s.u32()})
			if s.err != nil {
				break
			}
		}
	case secStart:
		m.start = int(s.u32())
	case secElement:
		m.scanElements(s)
	case secDataCount:
		s.u32()
		m.dataSegs = s.b[start:s.at]
	case secCode:
		m.scanCode(s)
	case secData:
		for range s.count("data segments", maxSegments) {
			flags := s.u32()
			if flags > 2 {
				s.fail("a data segment has flags %d", flags)
			}
			if flags == 2 {
				s.u32()
			}
			if flags != 1 {
				m.constant(nil, s)
			}
			s.bytes(int(s.u32()))
			if s.err != nil {
				break
			}
		}
		m.data = s.b[start:s.at]
	}
	return s.end(fmt.Sprintf("section %d", id))
}

func kindName(kind byte) string {
	if names := []string{"function", "table", "memory", "global", "tag"}; int(kind) < len(names) {
		return names[kind]
	}
	return "thing of an unknown kind"
}

func (m *module) scanTables(s *reader) {
	for range s.count("tables", maxTables) {
		t := tableType{elem: s.byte()}
		if t.elem != 0x70 && t.elem != 0x6f {
			s.fail("a table has elements of type 0x%02x", t.elem)
		}
		flags := s.byte()
		t.min, t.max = s.u32(), maxElements
		switch flags {
		case 0:
		case 1:
			t.max = min(s.u32(), maxElements)
		default:
			s.fail("a table has limits of kind %d", flags)
		}
		if t.min > maxElements || m.reserved+t.min > maxElements {
			s.fail("the tables have more than %d elements", maxElements)
		}
		m.reserved += t.min
		m.tables = append(m.tables, t)
		if s.err != nil {
			return
		}
	}
}

func (m *module) scanMemory(s *reader) uint32 {
	flags := s.byte()
	least := s.u32()
	switch flags {
	case 0:
	case 1:
		s.u32()
	default:
		s.fail("the memory has limits of kind %d: shared and 64-bit memories are not accepted", flags)
	}
	return least
}

// constant copies a constant expression to b, with functions shifted.
func (m *module) constant(b []byte, s *reader) []byte {
	for s.err == nil {
		start := s.at
		in := s.next()
		switch in.op {
		case opRefFunc:
			b = appendU32(append(b, opRefFunc), m.shift(in.index))
		case opI32Const, opI64Const, 0x43, 0x44, opGlobalGet, 0xd0, opSIMD, opEnd:
			b = append(b, s.b[start:s.at]...)
			if in.op == opSIMD && in.sub != 12 {
				s.fail("an instruction is not constant")
			}
		default:
			s.fail("an instruction is not constant")
		}
		if in.op == opEnd {
			break
		}
	}
	return b
}

// shift is the index in the rewritten module, where one more function is imported.
func (m *module) shift(f uint32) uint32 {
	if f >= uint32(len(m.imports)) {
		return f + 1
	}
	return f
}

// scanElements keeps the section with functions shifted.
func (m *module) scanElements(s *reader) {
	n := s.count("element segments", maxSegments)
	b := appendU32(nil, uint32(n))
	total := 0
	for range n {
		start := s.at
		flags := s.u32()
		if flags > 7 {
			s.fail("an element segment has flags %d", flags)
			return
		}
		if flags&1 == 0 && flags&2 != 0 {
			s.u32()
		}
		b = append(b, s.b[start:s.at]...)
		if flags&1 == 0 {
			b = m.constant(b, s)
		}
		if flags&3 != 0 {
			b = append(b, s.byte()) // the elements' kind
		}
		k := s.count("elements", maxElements)
		if total += k; total > maxElements {
			s.fail("the element segments hold more than %d elements", maxElements)
		}
		b = appendU32(b, uint32(k))
		for range k {
			if flags < 4 {
				b = appendU32(b, m.shift(s.u32()))
			} else {
				b = m.constant(b, s)
			}
			if s.err != nil {
				return
			}
		}
	}
	m.elements = b
}

func (m *module) scanCode(s *reader) {
	n := s.count("function bodies", maxFuncs)
	if s.err == nil && n != len(m.funcs) {
		s.fail("%d functions are declared, %d have code", len(m.funcs), n)
	}
	for i := range n {
		size := s.u32()
		if size > maxBody {
			s.fail("function %d has %d bytes, the limit is %d", i+len(m.imports), size, maxBody)
		}
		c := s.sub(size)
		if s.err != nil {
			return
		}
		b, err := m.scanBody(c, i)
		if err != nil {
			s.err = fmt.Errorf("function %d: %w", i+len(m.imports), err)
			return
		}
		if m.weight += b.weight; m.weight > maxModuleWeight {
			s.fail("the functions together are too much to compile: weight %d, the limit is %d", m.weight, maxModuleWeight)
		}
		m.bodies = append(m.bodies, b)
	}
}
