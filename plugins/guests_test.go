package plugins

// The losses that the tests run, assembled by hand.

const crossEntropyMeta = `{"name":"ce","version":"1.0.0","scope":"datum","inputs":[{"name":"weights","dtype":"float32","like":"logprobs"}],
"metrics":["ce/tokens:sum"]}`

// column puts the address of column n's data into a local: request + columns_off + 32 n, its field 16.
func columnData(n, into int) []byte {
	return join(get(0), mem(i32Load, offColumnsAt), get(0), op(i32Add), mem(i32Load, columnSize*n+16), get(0), op(i32Add), set(into))
}

func columnSpans(n, into int) []byte {
	return join(get(0), mem(i32Load, offColumnsAt), get(0), op(i32Add), mem(i32Load, columnSize*n+12), get(0), op(i32Add), set(into))
}

func outWeights(into int) []byte {
	return join(get(0), mem(i32Load, offWeightsAt), get(0), op(i32Add), set(into))
}

// oneMetric writes metric 0 with the f64 that code leaves on the stack. The name is put at 512 by its caller.
func oneMetric(nameLen int, local int, code ...[]byte) []byte {
	return join(
		get(0), mem(i32Load, offMetricsAt), get(0), op(i32Add), tee(local), join(code...), mem(f64Store, 0),
		get(local), ic(nameLen), mem(i32Store, 8),
		get(local), ic(16), op(i32Add), ic(512), ic(nameLen), misc1(miscMemoryCopy), op(0, 0),
		get(0), ic(1), mem(i32Store, offOutMetrics))
}

// crossEntropy: loss = sum -w lp, weights w, four elements at a time; the rest one by one.
func crossEntropy() *guest {
	// 2 lp, 3 w, 4 out, 5 bytes left, 6 scratch; 7 sum
	g := newGuest(crossEntropyMeta,
		columnData(0, 2), columnData(1, 3), outWeights(4),
		get(0), mem(i32Load, offElems), ic(2), op(i32Shl), set(5),
		blk(lop(
			get(5), op(i32Eqz), brIf(1),
			get(4), get(3), mem(f32Load, 0), mem(f32Store, 0),
			get(7), get(2), mem(f32Load, 0), op(f64Promote), get(3), mem(f32Load, 0), op(f64Promote), op(f64Mul), op(f64Sub), set(7),
			step(2, 4), step(3, 4), step(4, 4), step(5, -4), br(0))),
		get(0), get(7), mem(f64Store, offOutLoss),
		oneMetric(len("ce/tokens:sum"), 6, get(0), mem(i32Load, offElems), op(0xb8)), // f64.convert_i32_u
		ic(0))
	g.locals = i32 + i32 + i32 + i32 + i32 + f64
	g.segment(512, []byte("ce/tokens:sum"))
	return g
}

func step(local, by int) []byte { return join(get(local), ic(by), op(i32Add), set(local)) }

const dpoMeta = `{"name":"dpo","version":"1.2.0","summary":"pairs: chosen, rejected","scope":"group","grouping":{"by":"consecutive","size":2},
"inputs":[{"name":"weights","dtype":"float32","like":"logprobs"},{"name":"ref_logprobs","dtype":"float32","like":"logprobs"}],
"params":[{"name":"beta","type":"number","default":0.1,"min":0}],"metrics":["dpo/margin:mean"]}`

// dpo is the mean over the batch's pairs of p(m), m = beta * (s0 - s1), s the sum of w (lp - ref) of a datum, and p a polynomial near log(1 + exp(-m)):
// ln 2 - m/2 + m^2/8. (Its first terms at 0.) Its weights are -dp/dm beta w / pairs, with the other sign for the rejected one. Sums run on two vectors.
func dpo() *guest {
	const (
		spans, lp, w, ref, out, n, at, pairs = 2, 3, 4, 5, 6, 7, 8, 9
		sum, margin, loss, slope, scale      = 10, 11, 12, 13, 14
		acc, margins                         = 15, 16
	)
	span := func(datum, field int) []byte { return join(get(spans), mem(i32Load, spanSize*datum+field)) }
	// Points the four columns' addresses at a datum and n at its end, in bytes.
	point := func(datum int) []byte {
		return join(
			columnData(0, lp), columnData(1, w), columnData(2, ref), outWeights(out),
			span(datum, 0), ic(2), op(i32Shl), tee(at),
			get(lp), op(i32Add), set(lp), get(at), get(w), op(i32Add), set(w), get(at), get(ref), op(i32Add), set(ref),
			get(at), get(out), op(i32Add), set(out),
			span(datum, 4), ic(2), op(i32Shl), set(n), ic(0), set(at))
	}
	addr := func(base int) []byte { return join(get(base), get(at), op(i32Add)) }
	sumOf := func(datum int) []byte {
		return join(
			point(datum), vec(12), make([]byte, 16), set(acc),
			blk(lop( // vectors
				get(at), ic(16), op(i32Add), get(n), op(0x4b), brIf(1), // gt_u
				get(acc), addr(w), vmem(0, 0), addr(lp), vmem(0, 0), addr(ref), vmem(0, 0), vec(0xe5), vec(0xe6), vec(0xe4), set(acc),
				step(at, 16), br(0))),
			get(acc), vec(0x1f), op(0), op(f64Promote), get(acc), vec(0x1f), op(1), op(f64Promote), op(f64Add),
			get(acc), vec(0x1f), op(2), op(f64Promote), op(f64Add), get(acc), vec(0x1f), op(3), op(f64Promote), op(f64Add), set(sum),
			blk(lop( // the rest
				get(at), get(n), op(i32GeU), brIf(1),
				get(sum), addr(w), mem(f32Load, 0), addr(lp), mem(f32Load, 0), addr(ref), mem(f32Load, 0), op(f32Sub), op(f32Mul), op(f64Promote), op(f64Add), set(sum),
				step(at, 4), br(0))))
	}
	weightsOf := func(datum int) []byte {
		return join(
			point(datum), get(scale), vec(0x13), set(acc), // splat
			blk(lop(
				get(at), ic(16), op(i32Add), get(n), op(0x4b), brIf(1),
				addr(out), addr(w), vmem(0, 0), get(acc), vec(0xe6), vmem(11, 0),
				step(at, 16), br(0))),
			blk(lop(
				get(at), get(n), op(i32GeU), brIf(1),
				addr(out), addr(w), mem(f32Load, 0), get(scale), op(f32Mul), mem(f32Store, 0),
				step(at, 4), br(0))))
	}
	beta := join(get(0), mem(i32Load, offParamsAt), get(0), op(i32Add), mem(f64Load, 0))
	g := newGuest(dpoMeta,
		columnSpans(0, spans), get(0), mem(i32Load, offDatums), ic(1), op(i32ShrU), set(pairs),
		blk(lop(
			get(pairs), op(i32Eqz), brIf(1),
			sumOf(0), get(sum), set(margin), sumOf(1), get(margin), get(sum), op(f64Sub), beta, op(f64Mul), tee(margin),
			get(margins), op(f64Add), set(margins),
			get(loss), dc(0.6931471805599453), op(f64Add), get(margin), dc(0.5), op(f64Mul), op(f64Sub),
			get(margin), get(margin), op(f64Mul), dc(0.125), op(f64Mul), op(f64Add), set(loss),
			// slope = -(dp/dm) beta / pairs = (1/2 - m/4) beta * 2 / batch_datums
			dc(0.5), get(margin), dc(0.25), op(f64Mul), op(f64Sub), beta, op(f64Mul), dc(2), op(f64Mul),
			get(0), mem(i32Load, offBatchDatums), op(0xb8), op(f64Div), set(slope),
			get(slope), op(f32Demote), set(scale), weightsOf(0),
			get(scale), op(f32Neg), set(scale), weightsOf(1),
			step(spans, 2*spanSize), step(pairs, -1), br(0))),
		get(0), get(loss), dc(2), op(f64Mul), get(0), mem(i32Load, offBatchDatums), op(0xb8), op(f64Div), mem(f64Store, offOutLoss),
		oneMetric(len("dpo/margin:mean"), at, get(margins), dc(2), op(f64Mul), get(0), mem(i32Load, offDatums), op(0xb8), op(f64Div)),
		ic(0))
	g.locals = i32 + i32 + i32 + i32 + i32 + i32 + i32 + i32 + f64 + f64 + f64 + f64 + f32 + "\x7b" + f64
	g.segment(512, []byte("dpo/margin:mean"))
	return g
}
