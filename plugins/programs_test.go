package plugins

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
)

// program makes random functions that end: loops count, and functions call only those made before. What is seen of a float is its conversion
// to an integer, because the bits of a NaN are left open by WebAssembly.
type program struct {
	*guest
	rng    *rand.Rand
	locals string
	made   []uint32 // functions (i32, i64) -> (i64)
	labels int      // open blocks without parameters and results
	spare  int      // locals for loop counters
	budget int      // nodes
}

// Locals of a program's function: two parameters, then these.
const programLocals = i32 + i32 + i64 + i64 + f32 + f64 + "\x7b" + "\x7b"

const loopCounters = 4

func (p *program) pick(n int) int { return p.rng.IntN(n) }

// local is a random one of a type.
func (p *program) local(t byte) int {
	for {
		if i := p.pick(len(p.locals) - loopCounters); p.locals[i] == t {
			return i
		}
	}
}

// expr leaves one value of a type.
func (p *program) expr(t byte) []byte {
	p.budget--
	leaf := p.budget < 0
	switch t {
	case 0x7f:
		return p.i32(leaf)
	case 0x7e:
		switch {
		case leaf || p.pick(4) == 0:
			return get(p.local(t))
		case p.pick(6) == 0 && len(p.made) > 0:
			return join(p.expr(0x7f), p.expr(0x7e), call1(p.made[p.pick(len(p.made))]))
		case p.pick(6) == 0 && len(p.made) > 0: // through a table whose entries may be missing
			return join(p.expr(0x7f), p.expr(0x7e), p.expr(0x7f), ic(7), op(i32And), op(opCallIndirect), appendU32(nil, p.typ(i32+i64, i64)), op(0))
		case p.pick(4) == 0:
			return join(p.expr(0x7f), op(0xac+byte(p.pick(2))))
		case p.pick(4) == 0:
			return join(p.expr(0x7c), misc1(6+byte(p.pick(2))))
		case p.pick(5) == 0:
			return join(p.address(), mem(i64Load, p.pick(64)))
		case p.pick(5) == 0:
			return gget(1)
		case p.pick(8) == 0:
			return join(p.expr(0x7b), vec(0x1d), op(byte(p.pick(2))))
		case p.pick(8) == 0:
			return join(p.expr(t), op(0x79+byte(p.pick(3)))) // clz, ctz, popcnt
		}
		ops := []byte{0x7c, 0x7d, 0x7e, 0x7f, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89}
		return join(p.expr(t), p.expr(t), op(ops[p.pick(len(ops))]))
	case 0x7d:
		if leaf || p.pick(3) == 0 {
			return [][]byte{get(p.local(t)), fc(float32(p.pick(100)) / 8)}[p.pick(2)]
		}
		if p.pick(4) == 0 {
			return join(p.expr(0x7c), op(f32Demote))
		}
		return join(p.expr(t), p.expr(t), op(0x92+byte(p.pick(4))))
	case 0x7c:
		if leaf || p.pick(3) == 0 {
			return [][]byte{get(p.local(t)), dc(float64(p.pick(100)) / 8)}[p.pick(2)]
		}
		switch p.pick(4) {
		case 0:
			return join(p.expr(0x7e), op(0xb9))
		case 1:
			return join(p.expr(t), op([]byte{f64Sqrt, 0x9b, 0x9c, 0x9d}[p.pick(4)]))
		}
		return join(p.expr(t), p.expr(t), op(0xa0+byte(p.pick(6))))
	}
	switch { // v128, of integers
	case leaf || p.pick(3) == 0:
		return get(p.local(t))
	case p.pick(4) == 0:
		return join(p.expr(0x7f), vec(0x11))
	case p.pick(4) == 0:
		return join(p.address(), vmem(0, p.pick(64)))
	case p.pick(6) == 0:
		return join(p.expr(t), p.expr(t), vec(13), op(0, 9, 17, 3, 31, 5, 6, 7, 8, 1, 2, 3, 30, 29, 28, 16))
	}
	ops := []uint32{0x6e, 0x71, 0x8e, 0xae, 0xb1, 0xb5, 0xce, 0xd5, 0x4e, 0x50, 0x51, 0x37, 0x65, 0xba}
	return join(p.expr(t), p.expr(t), vec(ops[p.pick(len(ops))]))
}

func (p *program) i32(leaf bool) []byte {
	const t = 0x7f
	switch {
	case leaf || p.pick(5) == 0:
		return [][]byte{get(p.local(t)), ic(p.pick(2000) - 1000), op(0x3f, 0)}[p.pick(3)]
	case p.pick(5) == 0:
		return join(p.address(), mem(i32Load, p.pick(64)))
	case p.pick(6) == 0:
		return join(p.expr(0x7e), p.expr(0x7e), op(0x51+byte(p.pick(10))))
	case p.pick(6) == 0:
		return join(p.expr(0x7c), p.expr(0x7c), op(0x61+byte(p.pick(6))))
	case p.pick(6) == 0:
		return join(p.expr(0x7d), misc1(byte(p.pick(2))))
	case p.pick(8) == 0: // with a result on both arms
		cond := p.expr(t)
		return join(cond, op(opIf, 0x7f), p.noBranch(func() []byte { return p.expr(t) }), op(opElse), p.noBranch(func() []byte { return p.expr(t) }), op(opEnd))
	case p.pick(8) == 0:
		return join(p.expr(t), p.expr(t), p.expr(t), op(0x1b)) // select
	case p.pick(8) == 0:
		return join(p.expr(t), op(0xc0+byte(p.pick(2)))) // sign extensions
	case p.pick(10) == 0:
		return join(p.expr(t), ic(1), op(i32And), op(opMemoryGrow, 0))
	case p.pick(10) == 0:
		return join(op(0xd2), appendU32(nil, p.made0()), op(0xd1)) // ref.func, ref.is_null
	}
	ops := []byte{0x46, 0x48, 0x4d, 0x6a, 0x6b, 0x6c, 0x6d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x76, 0x78}
	return join(p.expr(t), p.expr(t), op(ops[p.pick(len(ops))]))
}

func (p *program) made0() uint32 { return uint32(len(p.imports)) }

// noBranch makes code inside a block that is not counted as a label.
func (p *program) noBranch(f func() []byte) []byte {
	old := p.labels
	p.labels = 0
	defer func() { p.labels = old }()
	return f()
}

// address is a random place in the first 32 KiB.
func (p *program) address() []byte { return join(p.expr(0x7f), ic(0x7fff), op(i32And)) }

// stmts is a list of statements.
func (p *program) stmts(n int) (code []byte) {
	for range n {
		code = append(code, p.stmt()...)
	}
	return code
}

func (p *program) inside(f func() []byte) []byte {
	p.labels++
	defer func() { p.labels-- }()
	return f()
}

func (p *program) stmt() []byte {
	p.budget -= 2
	if p.budget < 0 {
		return op(0x01) // nop
	}
	few := func() []byte { return p.stmts(1 + p.pick(3)) }
	switch p.pick(16) {
	case 0:
		return join(p.expr(0x7f), iff(p.inside(few)))
	case 1:
		return join(p.expr(0x7f), op(opIf, 0x40), p.inside(few), op(opElse), p.inside(few), op(opEnd))
	case 2:
		return blk(p.inside(few))
	case 3: // a counted loop
		if p.spare == 0 {
			return op(0x01)
		}
		p.spare--
		c := len(p.locals) - loopCounters + p.spare
		body := p.noBranch(few) // a branch to the loop could be endless
		p.spare++
		return join(ic(1+p.pick(4)), set(c), lop(body, get(c), ic(1), op(i32Sub), tee(c), brIf(0)))
	case 4:
		if p.labels > 0 {
			return join(p.expr(0x7f), brIf(p.pick(p.labels)))
		}
	case 5: // with dead code behind it
		if p.labels > 0 {
			return join(p.expr(0x7f), iff(p.inside(func() []byte {
				return join(br(p.pick(p.labels)), p.stmt(), call1(p.made0()+1), op(drop))
			})))
		}
	case 6:
		if p.labels > 0 {
			n := 1 + p.pick(4)
			code := join(p.expr(0x7f), op(opBrTable), appendU32(nil, uint32(n)))
			for range n + 1 {
				code = appendU32(code, uint32(p.pick(p.labels)))
			}
			return blk(p.inside(func() []byte { return nil }), p.expr(0x7f), op(drop), iffBlock(code))
		}
	case 7:
		if p.pick(4) == 0 {
			return join(p.expr(0x7f), iff(join(p.expr(0x7e), op(opReturn))))
		}
	case 8:
		return join(p.address(), p.expr(0x7e), mem(i64Store, p.pick(64)))
	case 9:
		return join(p.address(), p.expr(0x7b), vmem(11, p.pick(64)))
	case 10:
		return join(p.address(), p.expr(0x7f), p.expr(0x7f), ic(0xfff), op(i32And), misc1(miscMemoryFill), op(0))
	case 11:
		return join(p.address(), p.address(), p.expr(0x7f), ic(0xfff), op(i32And), misc1(miscMemoryCopy), op(0, 0))
	case 12:
		return join(p.expr(0x7e), gset(1))
	case 13:
		return join(ic(p.pick(8)), op(0xd0, 0x70), ic(p.pick(3)), misc1(miscTableFill), op(0))
	}
	i := p.pick(len(p.locals) - loopCounters)
	return join(p.expr(p.locals[i]), set(i))
}

// iffBlock puts code that does not come back into an if that is not taken every time.
func iffBlock(code []byte) []byte { return join(get(0), ic(1), op(i32And), iff(code)) }

// randomProgram is a module with an export run() -> i64.
func randomProgram(seed uint64) []byte {
	p := &program{guest: newGuest(crossEntropyMeta, ic(0)), rng: rand.New(rand.NewPCG(seed, 7))}
	p.pages = 1
	p.maximum = 6
	p.imp("loss_host", "log", i32+i32+i32, "")
	p.globals = append(p.globals, join(op(0x7f, 0), ic(3), op(opEnd)), join(op(0x7e, 1), lc(11), op(opEnd)))
	p.tables = append(p.tables, op(0x70, 0, 8))
	fixed := p.fn(i32+i64, i64, "", get(1), get(0), op(0xac), op(0x7c)) // index 1
	if fixed != p.made0() {
		panic("the first function is not where it was expected")
	}
	p.fn("", i32, "", ic(5)) // index 2: for dead code
	p.made = append(p.made, fixed)
	locals := programLocals + strings.Repeat(i32, loopCounters)
	for range 1 + p.pick(5) {
		p.locals = i32 + i64 + locals
		p.spare, p.budget, p.labels = loopCounters, 60+p.pick(200), 0
		f := p.fn(i32+i64, i64, locals, p.stmts(3+p.pick(8)), p.expr(0x7e))
		p.made = append(p.made, f)
	}
	// In the table: one that calls nothing, so that no call comes back to its caller, one of another type, and nothing.
	entry := appendU32(nil, fixed)
	p.elems = append(p.elems, join(op(0), ic(0), op(opEnd), vector([][]byte{entry, entry, entry, appendU32(nil, fixed+1), entry, entry})))
	p.export("run", p.fn("", i64, "", ic(int(p.rng.Int32())), lc(p.rng.Int64()), call1(p.made[len(p.made)-1])))
	return p.build()
}

// outcome is all that can be seen of a run.
type outcome struct {
	result uint64
	err    string
	memory []byte
}

func runProgram(t *testing.T, h *Host, compiled wazero.CompiledModule) (o outcome, fuel int64) {
	t.Helper()
	i := &instance{call: call{allowance: allowance{1 << 40, time.Hour}}}
	i.ctx = context.WithValue(context.Background(), callKey{}, &i.call)
	mod, err := h.rt.InstantiateModule(i.ctx, compiled, h.config)
	if err != nil {
		t.Fatal(err)
	}
	defer mod.Close(i.ctx)
	i.Module = mod
	r, err := mod.ExportedFunction("run").Call(i.ctx)
	if err != nil {
		o.err, _, _ = strings.Cut(err.Error(), "\n")
	} else {
		o.result = r[0]
	}
	b, _ := mod.Memory().Read(0, mod.Memory().Size())
	o.memory = bytes.Clone(b)
	if g := mod.ExportedGlobal(fuelExport); g != nil {
		fuel = i.spent()
	}
	return o, fuel
}

// TestRandomPrograms: a rewritten program does what the original does, traps included, and pays the same on both engines.
func TestRandomPrograms(t *testing.T) {
	n := uint64(300)
	if testing.Short() {
		n = 50
	}
	if soak {
		n = 20_000
	}
	h, slow := openHost(t, Options{}), openHost(t, Options{Interpreter: true})
	traps, ran, paid := 0, 0, int64(0)
	for seed := range n {
		binary := randomProgram(seed)
		parts, err := scan(binary)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		ctx := context.Background()
		original, err := h.rt.CompileModule(ctx, binary)
		if err != nil {
			t.Fatalf("seed %d: the generator made an invalid program: %v", seed, err)
		}
		rewritten, err := h.rt.CompileModule(ctx, parts.rewrite())
		if err != nil {
			t.Fatalf("seed %d: rewritten: %v", seed, err)
		}
		interpreted, err := slow.rt.CompileModule(ctx, parts.rewrite())
		if err != nil {
			t.Fatal(err)
		}
		want, _ := runProgram(t, h, original)
		got, fuel := runProgram(t, h, rewritten)
		other, sameFuel := runProgram(t, slow, interpreted)
		for _, o := range []outcome{got, other} {
			// What was stored before a trap, and paid for, is not part of WebAssembly's promise to us: the compiler moves a division whose
			// result is not needed behind stores.
			if o.result != want.result || o.err != want.err || want.err == "" && !bytes.Equal(o.memory, want.memory) {
				t.Fatalf("seed %d: the original gives %x %q, the rewritten %x %q; memory equal: %v", seed, want.result, want.err, o.result, o.err, bytes.Equal(o.memory, want.memory))
			}
		}
		if want.err == "" && fuel != sameFuel || fuel <= 0 {
			t.Fatalf("seed %d: %d units compiled, %d interpreted (%q)", seed, fuel, sameFuel, want.err)
		}
		if want.err == "" {
			ran++
		} else {
			traps++
		}
		paid += fuel
		for _, m := range []wazero.CompiledModule{original, rewritten, interpreted} {
			m.Close(ctx)
		}
	}
	if ran < int(n)/4 || traps < int(n)/50 {
		t.Errorf("%d programs ended well, %d in a trap: the generator has lost its variety", ran, traps)
	}
	t.Logf("%d ended well, %d in a trap, %d units of fuel", ran, traps, paid)
}

// TestFunctionIndices: wherever a function is named, the rewritten module names the same one.
func TestFunctionIndices(t *testing.T) {
	h := openHost(t, Options{})
	g := newGuest(crossEntropyMeta, ic(0))
	g.imp("loss_host", "log", i32+i32+i32, "")
	var f [9][]byte // indices of functions that return 1, 10, 100 and so on
	power := int64(1)
	for i := range f {
		f[i] = appendU32(nil, g.fn("", i64, "", lc(power)))
		power *= 10
	}
	ref := func(i int) []byte { return join(op(opRefFunc), f[i], op(opEnd)) }
	at := func(i int) []byte { return join(ic(i), op(opEnd)) }
	g.tables = append(g.tables, op(0x70, 0, 9))
	g.elems = [][]byte{
		join(op(0), at(0), op(1), f[0]), join(op(1, 0, 1), f[4]), join(op(2, 0), at(1), op(0, 1), f[1]), join(op(3, 0, 1), f[6]),
		join(op(4), at(2), op(1), ref(2)), join(op(5, 0x70, 1), ref(5)), join(op(6, 0), at(3), op(0x70, 1), ref(3)), join(op(7, 0x70, 1), ref(8)),
	}
	g.globals = append(g.globals, join(op(0x70, 0), ref(7)))
	code := join(
		ic(4), ic(0), ic(1), misc1(miscTableInit), op(1, 0), ic(5), ic(0), ic(1), misc1(miscTableInit), op(5, 0),
		ic(6), op(opRefFunc), f[6], op(0x26, 0), ic(7), gget(0), op(0x26, 0), ic(8), op(opRefFunc), f[8], op(0x26, 0))
	// The sum of (i + 1) times what entry i returns, and of a direct call.
	code = append(code, call1(uint32(f[8][0]))...)
	for i := range f {
		code = join(code, ic(i), op(opCallIndirect), appendU32(nil, g.typ("", i64)), op(0), lc(int64(i+1)), op(0x7e, 0x7c))
	}
	g.export("run", g.fn("", i64, "", code))
	g.start = int(g.fn("", "", "", ic(700), ic(1), mem(i32Store, 0)))
	binary := g.build()
	ctx := context.Background()
	for _, b := range [][]byte{binary, must(scan(binary)).rewrite()} {
		o, _ := runProgram(t, h, must(h.rt.CompileModule(ctx, b)))
		if o.err != "" || o.result != 987654321+1e8 || o.memory[700] != 1 {
			t.Errorf("got %d %q, wanted the digits 1 to 9 from the right, and the last one twice", o.result, o.err)
		}
	}
}
