package plugins

// body is a function's code as the rewriter needs it.
type body struct {
	code    []byte // instructions with the closing end
	groups  []byte // declarations of locals, without their count
	nGroups uint32
	locals  uint32 // with parameters
	instrs  int
	calls   bool // it calls functions of the module, directly or by a table
	charges []int
	heads   int // charges at its start and loops' heads
	paid    int // charges
	weight  int
}

// Segments are straight stretches of code: one begins at a function's start, behind each loop, if, else and end, and behind each br_if.
// A region is a function without its loops, or a loop without its inner ones; control moves only forward in it, so each of its segments
// runs at most once per turn. A region whose segments behind the first are cheap together pays for all of them at its head: an
// upper bound, and one charge per turn. Otherwise every segment pays for itself. A region that switches runs few of its segments per turn (all loops
// of a function in Go are one such), so less is folded there.
const (
	foldedCost   = 512
	foldedSwitch = 128
)

// A charge costs about this itself.
const chargeCost = 4

type segment struct {
	cost   int
	region int
}

// scanBody decodes a function. Its charges are, in the order of its segments, what to charge at the segment's start.
func (m *module) scanBody(r *reader, index int) (b body, err error) {
	var sig signature
	if t := m.funcs[index]; t < uint32(len(m.types)) {
		sig = m.types[t]
	}
	locals := uint64(len(sig.params))
	b.nGroups = r.u32()
	start := r.at
	for i := uint32(0); i < b.nGroups && r.err == nil; i++ {
		if locals += uint64(r.u32()); locals > maxLocals {
			r.fail("more than %d locals", maxLocals)
		}
		r.byte()
	}
	b.locals, b.groups = uint32(locals), r.b[start:r.at]
	b.code = r.b[r.at:]
	if r.err != nil {
		return b, r.err
	}

	segments := []segment{{region: 0}}
	heads := []int{0} // of each region, its first segment
	regions := []int{0}
	switches := map[int]bool{} // regions with a br_table
	depth, values, joins := 0, 0, 0
	loops := []bool{false} // of each open block, whether it is a loop
	begin := func() { segments = append(segments, segment{region: regions[len(regions)-1]}) }
	for depth >= 0 && r.err == nil {
		in := r.next()
		b.instrs++
		switch in.op {
		case opCall:
			s, _ := m.typeOf(in.index)
			values += len(s.params) + len(s.results)
			b.calls = b.calls || in.index >= uint32(len(m.imports))
		case opCallIndirect:
			if in.index < uint32(len(m.types)) {
				values += len(m.types[in.index].params) + len(m.types[in.index].results)
			}
			b.calls = true
		case opBrTable:
			joins += in.arity
			switches[regions[len(regions)-1]] = true
		case opMisc:
			if in.sub >= miscMemoryInit {
				joins += 3 // their bounds, and loops that copy
			}
		}
		segments[len(segments)-1].cost += in.cost
		switch in.op {
		case opBlock, opLoop, opIf:
			if in.typed && in.index < uint32(len(m.types)) {
				values += 2 * (len(m.types[in.index].params) + len(m.types[in.index].results))
			}
			if depth++; depth > maxNesting {
				r.fail("blocks are nested more than %d deep", maxNesting)
			}
			loops = append(loops, in.op == opLoop)
			if in.op == opLoop {
				regions = append(regions, len(heads))
				heads = append(heads, len(segments))
			}
			if in.op != opBlock {
				begin()
			}
		case opElse, opBrIf:
			begin()
		case opEnd:
			if depth--; loops[len(loops)-1] {
				regions = regions[:len(regions)-1]
			}
			loops = loops[:len(loops)-1]
			if depth >= 0 {
				begin()
			}
		}
	}
	if err := r.end("the code"); err != nil {
		return b, err
	}
	b.charges, b.heads = charges(segments, heads, switches), len(heads)
	for _, c := range b.charges {
		if c > 0 {
			b.paid++
		}
	}
	joins += len(segments)
	b.weight = weigh(b.instrs+values, joins, int(b.locals))
	if b.weight > maxFuncWeight {
		r.fail("too much to compile: %d instructions, %d joins, %d locals", b.instrs, joins, b.locals)
	}
	return b, r.err
}

// charges folds what is cheap into the heads.
func charges(segments []segment, heads []int, switches map[int]bool) []int {
	rest := make([]int, len(heads)) // of each region, the cost of its segments but the first
	for i, s := range segments {
		if heads[s.region] != i {
			rest[s.region] += s.cost
		}
	}
	out := make([]int, len(segments))
	for i, s := range segments {
		most := foldedCost
		if switches[s.region] {
			most = foldedSwitch
		}
		head, folded := heads[s.region] == i, rest[s.region] <= most
		switch {
		case head && folded:
			out[i] = chargeCost + s.cost + rest[s.region]
		case head:
			out[i] = chargeCost + s.cost
		case !folded && s.cost > 0:
			out[i] = chargeCost + s.cost
		}
	}
	return out
}

// weigh is what a function costs to compile, in instructions. Both terms of joins were measured: wazero looks at each
// block for each other one, and keeps locals apart at each join.
func weigh(instrs, joins, locals int) int { return instrs + joins*locals/16 + joins*joins/512 }

// frame is what a call of the function takes of the depth: at most about a thousand calls are open at a time, fewer when
// their frames are large. (Frames hold locals and values that are alive across calls.)
func (b *body) frame() int64 { return int64(16 + b.locals/16 + uint32(b.instrs)/128) }

// maxDepth is what all open calls may take together.
const maxDepth = 16 << 10
