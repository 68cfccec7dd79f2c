package plugins

import (
	"bytes"
	"context"
	"fmt"
	"testing"
)

// sampleImmediates are operands that are valid in the module of TestOpcodes; the numbers are long enough that a wrong length would be noticed.
var sampleImmediates = map[immediates][]byte{
	none: nil, blockType: {0x40}, label: {0x80, 0x00}, labels: {2, 0x80, 0x00, 0, 0}, function: {0x80, 0x00}, indirect: {0, 0x80, 0x00},
	variable: {0x80, 0x00}, one: {0}, two: {0, 0}, memory: {0, 0x81, 0x80, 0x00}, lane: {1}, memoryLane: {0, 0x81, 0x00, 1},
	number32: {0xff, 0xff, 0xff, 0xff, 0x07}, number64: {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00},
	bytes4: {0x80, 0x80, 0x80, 0x80}, bytes8: bytes.Repeat([]byte{0x80}, 8), bytes16: bytes.Repeat([]byte{0x0b}, 16),
	memoryIndex: {0}, memoryPair: {0, 0}, dataMemory: {0, 0}, refType: {0x70}, resultTypes: {1, 0x7f},
}

// opcodeModule has one of everything that an opcode can name, and a function of the given code that is never reached.
func opcodeModule(code []byte) []byte {
	g := crossEntropy()
	g.globals = append(g.globals, join(op(0x7f, 1), ic(0), op(opEnd)))
	g.tables = append(g.tables, op(0x70, 0, 1))
	g.imp("loss_host", "log", i32+i32+i32, "") // index 0
	f := g.fn("", "", i32, op(unreachable), code, op(unreachable))
	g.elems = append(g.elems, join(op(0), ic(0), op(opEnd), vector([][]byte{appendU32(nil, f), {0}})))
	g.tables[0] = op(0x70, 0, 2)
	return g.build()
}

// TestOpcodes: every opcode of core 2.0 is decoded with its operands, by us as by wazero; what one refuses, the other refuses.
func TestOpcodes(t *testing.T) {
	h := openHost(t, Options{})
	count := 0
	try := func(name string, prefix []byte, row opcode) {
		code := append(bytes.Clone(prefix), sampleImmediates[row.imm]...)
		switch {
		case len(prefix) == 1 && (prefix[0] == opElse || prefix[0] == opEnd):
			return // they come with a block
		case row.imm == blockType && prefix[0] == opIf:
			code = join(code, op(opElse, opEnd))
		case row.imm == blockType:
			code = append(code, opEnd)
		}
		if row.imm != illegal {
			r := &reader{b: append(bytes.Clone(code), 0xaa)}
			if r.next(); r.err != nil || row.imm != blockType && r.at != len(code) {
				t.Errorf("%s: decoded %d of %d bytes: %v", name, r.at, len(code), r.err)
			}
		}
		binary := opcodeModule(code)
		parts, err := scan(binary)
		if (err == nil) != (row.imm != illegal) {
			t.Errorf("%s: scan says %v", name, err)
		}
		original, refused := h.validate.CompileModule(context.Background(), binary)
		if (refused == nil) != (row.imm != illegal) {
			t.Errorf("%s: wazero says %v", name, refused)
		}
		if err != nil || refused != nil {
			return
		}
		original.Close(context.Background())
		count++
		m, err := h.validate.CompileModule(context.Background(), parts.rewrite())
		if err != nil {
			t.Errorf("%s: rewritten: %v", name, err)
			return
		}
		m.Close(context.Background())
	}
	for i := range 256 {
		if core[i].imm != miscPrefix && core[i].imm != simdPrefix {
			try(fmt.Sprintf("0x%02x", i), []byte{byte(i)}, core[i])
		}
	}
	for i := range uint32(24) {
		row := opcode{}
		if int(i) < len(misc) {
			row = misc[i]
		}
		try(fmt.Sprintf("0xfc %d", i), appendU32([]byte{opMisc}, i), row)
	}
	for i := range uint32(300) {
		row := opcode{}
		if int(i) < len(simd) {
			row = simd[i]
		}
		try(fmt.Sprintf("0xfd %d", i), appendU32([]byte{opSIMD}, i), row)
	}
	// 181 of one byte without else and end, 18 behind 0xfc, 236 vector instructions.
	if count != 181+18+236 {
		t.Errorf("%d opcodes were tried", count)
	}
}
