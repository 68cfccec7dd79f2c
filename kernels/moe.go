package kernels

// A mixture-of-experts block: a router that chooses TopK of E experts for each token, and the experts, each a SwiGLU
// feed-forward of F features. (Shazeer et al. 2017, arXiv 1701.06538; softmax before the choice and the optional
// normalisation after it as in Qwen3-MoE, transformers 5.23 modeling_qwen3_moe.py.)
//
// # Slots and rows
//
// Slot t*TopK+j is token t's j-th expert; a token's experts are in ascending order of their ids. A row is a slot's place when
// the slots are sorted by expert, and by token within an expert: what the experts read and write, so that each has its
// rows together. All tensors "[T*TopK, ...]" of [ExpertsArgs] are in the order of rows. The order of sums is that of the
// slots, so an expert's load and a token's neighbours never change a bit of its result.

// Routing is what the router decides about a batch: written by [Ops.Route], read by the other ops of the block. Rows,
// Slots and Begin must be as Route leaves them; a device may refuse others, but need not notice.
type Routing struct {
	IDs   Tensor // [T,TopK] I32: each token's experts, ascending
	Gate  Tensor // [T,TopK]: their weights
	Prob  Tensor // [T,E]: probabilities of all experts
	Rows  Tensor // [T,TopK] I32: the row of each slot
	Slots Tensor // [T*TopK] I32: the slot of each row
	Begin Tensor // [E+1] I32: expert e has the rows Begin[e] to Begin[e+1]
}

// RouteArgs: x [T,D], w [E,D]. prob[t] = softmax(x[t] W^T) over all experts, in float32 or wider; the TopK largest are chosen, ties going to the
// lower id. gate is their probability, divided by the sum of the TopK in ascending order of ids when Normalize is set.
type RouteArgs struct {
	Routing
	X         Tensor
	W         Weight
	Normalize bool
}

// RouteBackwardArgs: dgate [T,TopK] in the order of slots; dx [T,D] is ADDED to. The choice is held constant. With c = sum_j dgate_j*gate_j,
//
//	dz_i = gate_i * (dgate_i - c)               of the chosen, 0 of the others, when Normalize is set
//	dz_i = prob_i * (dgate_i or 0 - c)          of all experts otherwise
//
// and dx += dz W. The router is frozen and gets no gradient.
type RouteBackwardArgs struct {
	Routing
	DX, DGate Tensor
	W         Weight
	Normalize bool
}

// Experts are the frozen weights of one block: GateUp[e] is [2F,D] of two parts, Down[e] is [D,F]. It is made once
// and not changed, so that a device may keep tables of it by its address.
type Experts struct {
	GateUp, Down []Weight
}

// ExpertsArgs is the whole block. With e the expert of the token's slot j:
//
//	gu_j = x W_e^T + v B_e^T,  v = s * x A^T        (both parts, as in [LinearArgs])
//	h_j  = silu(gu_j[:F]) * gu_j[F:]
//	y    = sum_j gate_j * (h_j D_e^T) + (sum_j gate_j * v'_j) B'^T (+ res),  v'_j = s' * h_j A'_e^T
//
// The sums over j run in ascending order, and the order of the sum per element of y is: experts, adapter, residual.
//
// The adapters are "shared-outer": the factor on the side of the hidden size is one for all experts, the other is every
// expert's own. So in Up, the adapters of the gate and up projections, A is [2*R, D] and B is [2*E*F, R], part-major: output o of
// part p of expert e is row (p*E+e)*F+o. In Down, A is [E*R, F], R rows for each expert in turn, and B is [D, R].
//
// x, y, res [T,D]; y is none of the other tensors. gu [T*TopK,2F], v [T, >= 2*R] and vsum [T, >= R], which is sum_j gate_j*v'_j, are kept for the
// backward; v and vsum are defined on the tokens of spans with a LoRA. h [T*TopK,F] and lows [T*TopK, >= R of Down] are scratch. v, vsum
// and lows may be zero Tensors when no span has a LoRA that needs them.
type ExpertsArgs struct {
	Routing
	Y, X, Res   Tensor
	GU, V, VSum Tensor
	H, Lows     Tensor
	W           *Experts
	Up, Down    []Span
}

// ExpertsBackwardArgs: dy [T,D]; dx [T,D] is overwritten with the gradient through the experts alone ([RouteBackwardArgs] adds the router's),
// and dgate [T,TopK], in the order of slots, with dgate_j = h_j . dh_j. Here
//
//	u = dy B',  dh_j = dy D_e + s' * u A'_e,  dgu_j = gradient of h_j times gate_j * dh_j,  dx = sum_j dgu_j W_e + s * dv A,  dv = sum_j dgu_j B_e
//
// with sums over j in ascending order. It ADDS to DA and DB of every span's LoRA, per span and inside it over tokens in
// ascending order, as [Ops.LinearBackward] does; an expert's own factor gets the rows of that expert alone:
//
//	DA += s * dv^T x,  DB_e += dgu_j^T v,  DA'_e += s' * gate_j * u^T h_j,  DB' += dy^T vsum
//
// x, gu, v and vsum are those of the forward. Scratch: h, dh [T*TopK,F], dgu [T*TopK,2F], low [T, >= w] and lows [T*TopK, >= w], where w is the
// larger of 2*R of Up and R of Down. low, lows, x, v and vsum may be zero Tensors when no span has a LoRA that needs them.
type ExpertsBackwardArgs struct {
	Routing
	DX, DGate, DY, X Tensor
	GU, V, VSum      Tensor
	H, DH, DGU       Tensor
	Low, Lows        Tensor
	W                *Experts
	Up, Down         []Span
}
