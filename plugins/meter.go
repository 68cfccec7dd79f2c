package plugins

// The rewriter makes a module pay for what it executes. It appends a type, an imported function, two globals, an export and local
// variables, and shifts the indices of functions; nothing that the original names changes its meaning. The original has been
// validated before, so nothing in it names what is added.
//
// The global fuel counts down; below zero the module calls the imported function, which looks at the context and the budget and
// answers with what may be used next, or does not return. Because the budget is given out in slices, native code is left often: there, Go's
// garbage collector and scheduler get their turn. The global depth counts down with each open call.

// rewriterVersion is part of a compiled module's key and of a run's record: other charges are other limits.
const rewriterVersion = 1

// meterModule and meterName are the imported function: (fuel left i64, depth left i64) -> (fuel i64).
const (
	meterModule = "tinkerlocal"
	meterName   = "meter"
	fuelExport  = "__fuel" // read by the host after a call
)

var (
	meterType = signature{i64 + i64, i64}
	payType   = signature{i64, ""}
)

// inlined is how many charges a function may have before those that are not at its start or a loop's head become calls of a
// function that charges. An inlined charge is two instructions' time, but it adds blocks to the function, and the compiler's time grows with
// the square of their number.
const inlined = 64

// rewriter writes one module.
type rewriter struct {
	m           *module
	fuel, depth uint32 // globals
	meter, pay  uint32 // functions: the imported one, and one that takes its argument from the fuel
}

// rewrite returns the metered binary.
func (m *module) rewrite() []byte {
	w := rewriter{m: m, fuel: uint32(m.globals), depth: uint32(m.globals) + 1, meter: uint32(len(m.imports))}
	w.pay = w.meter + 1 + uint32(len(m.funcs))
	out := []byte("\x00asm\x01\x00\x00\x00")

	types := append(appendU32(nil, uint32(len(m.types))+2), m.rawTypes...)
	for _, t := range []signature{meterType, payType} {
		types = appendName(appendName(append(types, 0x60), t.params), t.results)
	}
	out = appendSection(out, secType, types)

	imports := append(appendU32(nil, uint32(len(m.imports))+1), m.rawImps...)
	imports = appendName(appendName(imports, meterModule), meterName)
	out = appendSection(out, secImport, appendU32(append(imports, 0), uint32(len(m.types))))

	funcs := appendU32(nil, uint32(len(m.funcs))+1)
	for _, t := range m.funcs {
		funcs = appendU32(funcs, t)
	}
	funcs = appendU32(funcs, uint32(len(m.types))+1)
	out = appendSection(out, secFunction, funcs)

	tables := appendU32(nil, uint32(len(m.tables)))
	for _, t := range m.tables {
		tables = appendU32(appendU32(append(tables, t.elem, 1), t.min), max(t.min, t.max))
	}
	out = appendSection(out, secTable, tables)
	if m.memory != nil {
		out = appendSection(out, secMemory, m.memory)
	}

	globals := append(appendU32(nil, uint32(m.globals)+2), m.rawGlobs...)
	globals = append(appendS64(append(globals, i64[0], 1, opI64Const), 0), opEnd)
	globals = append(appendS64(append(globals, i64[0], 1, opI64Const), maxDepth), opEnd)
	out = appendSection(out, secGlobal, globals)

	out = appendSection(out, secExport, w.exports())
	if m.start >= 0 {
		out = appendSection(out, secStart, appendU32(nil, m.shift(uint32(m.start))))
	}
	if m.elements != nil {
		out = appendSection(out, secElement, m.elements)
	}
	if m.dataSegs != nil {
		out = appendSection(out, secDataCount, m.dataSegs)
	}
	code := appendU32(nil, uint32(len(m.bodies))+1)
	for i := range m.bodies {
		code = appendSized(code, w.body(&m.bodies[i]))
	}
	code = appendSized(code, w.payBody())
	out = appendSection(out, secCode, code)
	if m.data != nil {
		out = appendSection(out, secData, m.data)
	}
	return out
}

// exports keeps them, since they declare what ref.func may name, but for one of the fuel's name, and adds the fuel.
func (w *rewriter) exports() []byte {
	b, n := []byte(nil), uint32(1)
	for _, e := range w.m.exports {
		if e.name == fuelExport {
			continue
		}
		if e.kind == 0 {
			e.index = w.m.shift(e.index)
		}
		b = appendU32(append(appendName(b, e.name), e.kind), e.index)
		n++
	}
	b = appendU32(append(appendName(b, fuelExport), 3), w.fuel)
	return append(appendU32(nil, n), b...)
}

// locals that a rewritten function has beyond its own.
const (
	localFuel   = iota // i64
	localDepth         // i64: the depth inside this call
	localLen           // i32: an operand
	localResult        // i32
)

// writer writes one function.
type writer struct {
	rewriter
	b    []byte
	base uint32 // of the added locals
}

// payBody is the function that charges its argument.
func (w *rewriter) payBody() []byte {
	c := writer{rewriter: *w, base: 1, b: []byte{1, 1, i64[0]}}
	c.charge(func() { c.b = append(c.b, opLocalGet, 0) })
	return append(c.b, opEnd)
}

func (w *rewriter) body(f *body) []byte {
	c := writer{rewriter: *w, base: f.locals}
	c.b = append(appendU32(nil, f.nGroups+2), f.groups...)
	c.b = append(c.b, 2, i64[0], 2, i32[0])

	if f.calls {
		c.open(f)
	} else {
		c.charge(func() { c.constant(int64(f.charges[0])) })
	}
	few := f.heads <= inlined // loops' heads, at most
	all := f.paid <= inlined
	r := &reader{b: f.code}
	segment, open := 0, 0
	skip := 0 // open blocks since the code became unreachable, plus one; 0: it is reachable
	begin := func(inline bool) {
		segment++
		switch cost := int64(f.charges[segment]); {
		case skip > 0 || cost == 0:
		case inline:
			c.charge(func() { c.constant(cost) })
		default:
			c.constant(cost)
			c.b = appendU32(append(c.b, opCall), c.pay)
		}
	}
	for r.at < len(r.b) {
		start := r.at
		in := r.next()
		raw := r.b[start:r.at]
		switch in.op {
		case opBlock, opLoop, opIf:
			open++
			if skip > 0 {
				skip++
			}
			c.b = append(c.b, raw...)
			if in.op != opBlock {
				begin(all || few && in.op == opLoop)
			}
		case opElse, opEnd:
			if in.op == opEnd {
				open--
			}
			c.b = append(c.b, raw...)
			if skip == 1 || skip > 0 && in.op == opEnd {
				skip--
			}
			if open >= 0 {
				begin(all)
			}
		case opBrIf:
			c.b = append(c.b, raw...)
			begin(all)
		case opBr, opBrTable, opReturn, opUnreachable:
			c.b = append(c.b, raw...)
			if skip == 0 {
				skip = 1
			}
		case opRefFunc:
			c.b = appendU32(append(c.b, opRefFunc), c.m.shift(in.index))
		case opCall:
			c.b = appendU32(append(c.b, opCall), c.m.shift(in.index))
			if n := uint32(len(c.m.imports)); in.index >= n && in.index-n < uint32(len(c.m.bodies)) && c.m.bodies[in.index-n].calls {
				c.restore()
			}
		case opCallIndirect:
			c.b = append(c.b, raw...)
			c.restore()
		default:
			if amount := lengths[in.key()]; amount.set {
				c.metered(raw, amount)
			} else {
				c.b = append(c.b, raw...)
			}
		}
	}
	return c.b
}

// key finds an instruction in a table by its opcode.
func (in instruction) key() uint32 { return uint32(in.op)<<16 | in.sub }

// length says how an instruction's last operand, a count, is charged: a unit for 16 bytes that are moved, and four for each byte of
// new memory, which the system has to find and to clear. What grows is paid for afterwards, and only if it did.
type length struct {
	set         bool
	grows       bool
	left, right int64 // shifts
}

var lengths = map[uint32]length{
	opMemoryGrow << 16:          {set: true, grows: true, left: 18},
	opMisc<<16 | miscMemoryInit: {set: true, right: 4},
	opMisc<<16 | miscMemoryCopy: {set: true, right: 4},
	opMisc<<16 | miscMemoryFill: {set: true, right: 4},
	opMisc<<16 | miscTableInit:  {set: true, right: 1},
	opMisc<<16 | miscTableCopy:  {set: true, right: 1},
	opMisc<<16 | miscTableFill:  {set: true, right: 1},
	opMisc<<16 | miscTableGrow:  {set: true, grows: true, right: 1},
}

func (c *writer) metered(raw []byte, l length) {
	c.local(opLocalTee, localLen)
	if l.grows {
		c.b = append(c.b, raw...)
		c.local(opLocalTee, localResult)
	}
	c.local(opLocalGet, localLen)
	c.b = append(c.b, opI64ExtendI32)
	if l.left > 0 {
		c.constant(l.left)
		c.b = append(c.b, opI64Shl)
	} else {
		c.constant(l.right)
		c.b = append(c.b, opI64ShrU)
	}
	if l.grows {
		c.local(opLocalGet, localResult)
		c.b = append(appendS64(append(c.b, opI32Const), -1), opI32Ne, opI64ExtendI32, opI64Mul)
	}
	c.b = appendU32(append(c.b, opCall), c.pay)
	if !l.grows {
		c.b = append(c.b, raw...)
	}
}

func (c *writer) local(op byte, l uint32)  { c.b = appendU32(append(c.b, op), c.base+l) }
func (c *writer) global(op byte, g uint32) { c.b = appendU32(append(c.b, op), g) }
func (c *writer) constant(v int64)         { c.b = appendS64(append(c.b, opI64Const), v) }

// take subtracts an amount from a global and leaves the rest there and in a local.
func (c *writer) take(global, local uint32, amount func()) {
	c.global(opGlobalGet, global)
	amount()
	c.b = append(c.b, opI64Sub)
	c.local(opLocalTee, local)
	c.global(opGlobalSet, global)
}

// charge takes fuel.
func (c *writer) charge(amount func()) {
	c.take(c.fuel, localFuel, amount)
	c.local(opLocalGet, localFuel)
	c.ask(func() { c.constant(0) })
}

// open takes fuel and depth at a function's start. Its callers put the depth back.
func (c *writer) open(f *body) {
	c.take(c.fuel, localFuel, func() { c.constant(int64(f.charges[0])) })
	c.take(c.depth, localDepth, func() { c.constant(f.frame()) })
	c.local(opLocalGet, localFuel)
	c.local(opLocalGet, localDepth)
	c.b = append(c.b, opI64Or) // negative if one of them is
	c.ask(func() { c.local(opLocalGet, localDepth) })
}

// ask calls the meter if the value on the stack is negative.
func (c *writer) ask(depth func()) {
	c.constant(0)
	c.b = append(c.b, opI64LtS, opIf, 0x40)
	c.local(opLocalGet, localFuel)
	depth()
	c.b = appendU32(append(c.b, opCall), c.meter)
	c.global(opGlobalSet, c.fuel)
	c.b = append(c.b, opEnd)
}

// restore puts the depth back behind a call.
func (c *writer) restore() {
	c.local(opLocalGet, localDepth)
	c.global(opGlobalSet, c.depth)
}
