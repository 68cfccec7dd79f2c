package plugins

// immediates says what follows an opcode.
type immediates byte

const (
	illegal     immediates = iota // not in core 2.0: threads, tail calls, exceptions and what came later
	none                          // nothing
	blockType                     // a signed number of 33 bits
	label                         // a depth
	labels                        // a vector of depths and one more
	function                      // an index of a function: shifted by the rewriter
	indirect                      // a type and a table
	variable                      // an index of a local or global
	one                           // one index: a table, a data or element segment
	two                           // two indices
	memory                        // alignment and offset
	lane                          // one byte
	memoryLane                    // alignment, offset, one byte
	number32                      // a signed number of 32 bits
	number64                      // a signed number of 64 bits
	bytes4                        // an f32
	bytes8                        // an f64
	bytes16                       // a v128, or the lanes of a shuffle
	memoryIndex                   // one byte 0
	memoryPair                    // two bytes 0
	dataMemory                    // a data segment and a byte 0
	refType                       // one byte
	resultTypes                   // a vector of types
	miscPrefix                    // another number says which: see misc
	simdPrefix                    // likewise: see simd
)

// opcode is a row of the tables. Cost is in units of fuel: about what the instruction takes in simple ones. What depends on an
// operand is charged beside it.
type opcode struct {
	imm  immediates
	cost uint8
}

// Opcodes that the rewriter looks at.
const (
	opUnreachable  = 0x00
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opI64LtS       = 0x53
	opI32Ne        = 0x47
	opI64Add       = 0x7c
	opI64Sub       = 0x7d
	opI64Or        = 0x84
	opI64Shl       = 0x86
	opI64Mul       = 0x7e
	opI64ShrU      = 0x88
	opI64ExtendI32 = 0xad // unsigned
	opRefFunc      = 0xd2
	opMisc         = 0xfc
	opSIMD         = 0xfd
)

// In misc.
const (
	miscMemoryInit = 8
	miscMemoryCopy = 10
	miscMemoryFill = 11
	miscTableInit  = 12
	miscTableCopy  = 14
	miscTableGrow  = 15
	miscTableFill  = 17
)

// Costs that are not one. Division and roots keep their unit busy; a call saves registers; an import leaves native code; a
// growth may copy.
const (
	costSlow   = 8
	costCall   = 6
	costBulk   = 32
	costGrow   = 250
	costImport = 250 // beside costCall, taken by the host
)

// opRange gives opcodes [from, to] one row.
type opRange struct {
	from, to int
	op       opcode
}

// core has the opcodes of one byte. (WebAssembly core specification 2.0, section 5.4.)
var core = table(256, []opRange{
	{0x00, 0x01, opcode{none, 1}}, {0x02, 0x04, opcode{blockType, 1}}, {0x05, 0x05, opcode{none, 1}},
	{0x0b, 0x0b, opcode{none, 0}}, {0x0c, 0x0d, opcode{label, 1}}, {0x0e, 0x0e, opcode{labels, 2}}, {0x0f, 0x0f, opcode{none, 1}},
	{0x10, 0x10, opcode{function, costCall}}, {0x11, 0x11, opcode{indirect, 2 * costCall}},
	{0x1a, 0x1b, opcode{none, 1}}, {0x1c, 0x1c, opcode{resultTypes, 1}},
	{0x20, 0x24, opcode{variable, 1}}, {0x25, 0x26, opcode{one, 2}},
	{0x28, 0x3e, opcode{memory, 1}}, {0x3f, 0x3f, opcode{memoryIndex, 1}}, {0x40, 0x40, opcode{memoryIndex, costGrow}},
	{0x41, 0x41, opcode{number32, 1}}, {0x42, 0x42, opcode{number64, 1}}, {0x43, 0x43, opcode{bytes4, 1}}, {0x44, 0x44, opcode{bytes8, 1}},
	{0x45, 0xc4, opcode{none, 1}},
	{0x6d, 0x70, opcode{none, costSlow}}, {0x7f, 0x82, opcode{none, costSlow}}, // integer div, rem
	{0x91, 0x91, opcode{none, costSlow}}, {0x95, 0x95, opcode{none, costSlow / 2}}, // f32 sqrt, div
	{0x9f, 0x9f, opcode{none, costSlow}}, {0xa3, 0xa3, opcode{none, costSlow / 2}}, // f64 sqrt, div
	{0xd0, 0xd0, opcode{refType, 1}}, {0xd1, 0xd1, opcode{none, 1}}, {0xd2, 0xd2, opcode{function, costBulk}},
	{opMisc, opMisc, opcode{miscPrefix, 0}}, {opSIMD, opSIMD, opcode{simdPrefix, 0}},
})

// misc has those behind the byte 0xfc.
var misc = table(18, []opRange{
	{0, 7, opcode{none, 2}}, // saturating conversions
	{8, 8, opcode{dataMemory, costBulk}}, {9, 9, opcode{one, 1}}, {10, 10, opcode{memoryPair, costBulk}}, {11, 11, opcode{memoryIndex, costBulk}},
	{12, 12, opcode{two, costBulk}}, {13, 13, opcode{one, 1}}, {14, 14, opcode{two, costBulk}}, {15, 15, opcode{one, costGrow}},
	{16, 16, opcode{one, 1}}, {17, 17, opcode{one, costBulk}},
})

// simd has those behind the byte 0xfd: the fixed-width 128-bit ones, none of the relaxed ones (from 256).
var simd = table(256, []opRange{
	{0, 11, opcode{memory, 1}}, {12, 12, opcode{bytes16, 1}}, {13, 13, opcode{bytes16, 2}}, {14, 20, opcode{none, 1}}, {21, 34, opcode{lane, 1}},
	{35, 83, opcode{none, 1}}, {84, 91, opcode{memoryLane, 2}}, {92, 93, opcode{memory, 1}}, {94, 255, opcode{none, 1}},
	{0x5e, 0x5f, opcode{none, 2}}, {0x67, 0x6a, opcode{none, 2}}, {0x74, 0x75, opcode{none, 2}}, {0x7a, 0x7a, opcode{none, 2}}, // conversions, roundings
	{0x94, 0x94, opcode{none, 2}}, {0xd5, 0xd5, opcode{none, 4}}, // f64x2 nearest; i64x2 mul
	{0xe3, 0xe3, opcode{none, 2 * costSlow}}, {0xe7, 0xe7, opcode{none, 2 * costSlow}}, {0xef, 0xef, opcode{none, 2 * costSlow}}, {0xf3, 0xf3, opcode{none, 2 * costSlow}},
	{0xf8, 0xff, opcode{none, 4}},                                                                  // conversions
	{0x9a, 0x9a, opcode{}}, {0xa2, 0xa2, opcode{}}, {0xa5, 0xa6, opcode{}}, {0xaf, 0xb0, opcode{}}, // not assigned
	{0xb2, 0xb4, opcode{}}, {0xbb, 0xbb, opcode{}}, {0xc2, 0xc2, opcode{}}, {0xc5, 0xc6, opcode{}}, {0xcf, 0xd0, opcode{}},
	{0xd2, 0xd4, opcode{}}, {0xe2, 0xe2, opcode{}}, {0xee, 0xee, opcode{}},
})

// table fills one row after the other; later ranges replace earlier ones.
func table(n int, rows []opRange) []opcode {
	t := make([]opcode, n)
	for _, r := range rows {
		for i := r.from; i <= r.to; i++ {
			t[i] = r.op
		}
	}
	return t
}

// instruction is one decoded instruction.
type instruction struct {
	op    byte
	sub   uint32 // behind a prefix
	imm   immediates
	cost  int
	index uint32 // function, type, label depth, or block type's index when it is one
	arity int    // labels: how many
	typed bool   // a block type that is an index
	plain byte   // a block type that is one value type, or 0x40
}

// next decodes one instruction.
func (r *reader) next() (in instruction) {
	in.op = r.byte()
	row := core[in.op]
	switch row.imm {
	case miscPrefix, simdPrefix:
		t := misc
		if row.imm == simdPrefix {
			t = simd
		}
		in.sub = r.u32()
		row = opcode{}
		if in.sub < uint32(len(t)) {
			row = t[in.sub]
		}
	}
	in.imm, in.cost = row.imm, int(row.cost)
	switch row.imm {
	case illegal:
		if in.op == opMisc || in.op == opSIMD {
			r.fail("opcode 0x%02x %d is not in WebAssembly core 2.0", in.op, in.sub)
		} else {
			r.fail("opcode 0x%02x is not in WebAssembly core 2.0 (no threads, tail calls, exceptions)", in.op)
		}
	case blockType:
		if c := r.byte(); c == 0x40 || c >= 0x6f && c < 0x80 {
			in.plain = c
		} else {
			r.at--
			in.index, in.typed = r.u32(), true
		}
	case label, function, variable, one:
		in.index = r.u32()
	case indirect, two, memory:
		in.index = r.u32()
		r.u32()
	case labels:
		in.arity = r.count("labels", len(r.b)) + 1
		for range in.arity {
			r.u32()
		}
	case lane, memoryIndex, refType:
		r.byte()
	case memoryLane:
		r.u32()
		r.u32()
		r.byte()
	case number32:
		r.skipLEB(5)
	case number64:
		r.skipLEB(10)
	case bytes4:
		r.bytes(4)
	case bytes8:
		r.bytes(8)
	case bytes16:
		r.bytes(16)
	case memoryPair:
		r.bytes(2)
	case dataMemory:
		r.u32()
		r.byte()
	case resultTypes:
		r.bytes(r.count("result types", 16))
	}
	return in
}
