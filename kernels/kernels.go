// Package kernels is the contract between the engine and a compute device.
//
// A [Device] owns memory ([Buffer]), holds frozen matrices in its own layout ([Weight]) and runs a
// small set of coarse operations ([Ops]) in forward/backward pairs. There is no graph and no
// automatic differentiation: engine/model calls the backward ops itself, in reverse.
//
// # Letters
//
// T tokens in the batch, D hidden size, H query heads, K key/value heads, C head size, F
// feed-forward size, V vocabulary, R adapter rank, P parts of a stacked weight, E experts. The gradient of
// x is dx. All tensors are row-major and contiguous.
//
// # Canonical reductions
//
// Every forward reduction has one fixed order that depends on nothing but its own length (and, in
// attention, on absolute key positions). Batch size, neighbours in the batch, tile shapes and the
// number of threads never change a bit of a token's result. So the same sequence gives the same bits
// alone or in any batch, in training, prefill and decode, per (device, kernel variant, dtype). A
// device states its orders in its package comment; kerneltest holds it to the promise.
//
// Gradients of adapters are summed per span (one span is one datum), inside it over tokens in
// ascending order in segments of a fixed length that start at the span's first token, and the
// segment sums are added in span order. So a datum's contribution is the same in any packing.
//
// # Use
//
// Ops are enqueued in order; one goroutine uses a Device at a time. Shape errors are returned as
// errors that name the op, wanted and got. No Op call allocates host memory.
package kernels

import "context"

// Info describes a device.
type Info struct {
	Name    string // for people: "cpu (avx2, 2 threads)"
	Kind    string // "cpu", "ref", "cuda"
	Variant string // kernel variant: bits are comparable within (Kind, Variant, dtype)
	Act     DType  // dtype of activations, adapters, gradients and moments
	Threads int    // host threads used, 0 when not applicable
	Memory  int64  // bytes of memory in total, 0 when unknown
	Free    int64  // bytes available now, 0 when unknown
}

// Device is a place where tensors live and ops run.
type Device interface {
	Info() Info
	// Alloc returns zero-filled memory, or an error that names the bytes wanted and free.
	Alloc(bytes int64) (Buffer, error)
	// Free gives b back. Tensors on it must not be used any more. Free of nil does nothing.
	Free(b Buffer)
	// Upload copies src (the tensor's dtype, little endian) to dst; src may be reused on return.
	Upload(dst Tensor, src []byte) error
	// Download copies src to dst; it waits for the work that writes src.
	Download(dst []byte, src Tensor) error
	// Pack builds a frozen weight out of one or more matrices with the same column count, stacked
	// by rows in the order given. The sources may be reused on return. store is the dtype the weight is kept
	// in: F32 or BF16 (F64 on a float64 device for either).
	Pack(parts []Matrix, store DType) (Weight, error)
	// Wait drains submitted work and reports its faults.
	Wait(ctx context.Context) error
	Ops() Ops
	Close() error
}

// Buffer is device memory.
type Buffer interface {
	Len() int64 // bytes; 0 once it is freed, so that the checks catch a use after Free
}

// Matrix is a host matrix in row-major order: Data holds Rows*Cols values of DType (F32, F16 or BF16), little endian.
type Matrix struct {
	Rows, Cols int
	DType      DType
	Data       []byte
}

// Weight is a frozen [N, K] matrix (rows are outputs) in a device's own layout, made of P stacked parts.
type Weight interface {
	Rows() int    // N, all parts together; 0 once freed
	Cols() int    // K
	Parts() []int // rows of each part; owned by the weight, do not change
	Bytes() int64 // device memory it holds
	Store() DType // how its values are kept
	Free()        // gives the memory back
}

// LoRA is one adapter's pair of factors for one stacked weight of P parts, and where their gradients go.
//
// A is [P*R, K]: the parts' down projections stacked in part order. B is [N, R]: row o belongs to the
// part p(o) that owns row o of the weight. The adapter's contribution to output o is
//
//	s * sum_j B[o,j] * (A x)[p(o)*R + j]
//
// (Hu et al. 2021, arXiv 2106.09685, section 4.1, with s = alpha/r.)
type LoRA struct {
	Rank   int
	Scale  float32
	A, B   Tensor
	DA, DB Tensor // gradients, same shapes; only read by backward ops, which ADD to them
}

// Span says which adapter the tokens [Begin, End) of a batch use for one weight. A span never crosses
// a datum: gradients are summed per span in span order (see the package comment). Spans are
// ascending and disjoint; tokens outside every span, and spans with LoRA nil, see the bare weight.
type Span struct {
	Begin, End int
	LoRA       *LoRA
}

// Seq is one sequence's place in a packed batch, for attention. Rows [Begin, End) of the batch are
// its query tokens; they sit at absolute positions Pos, Pos+1, ... and see the keys at positions
// 0..own position. The key at position j is row KV+j of the key/value tensors when Pages is nil, and
// row Pages[j/PageLen]*PageLen + j%PageLen otherwise (see [AttentionArgs]).
type Seq struct {
	Begin, End int
	Pos        int
	KV         int
	Pages      []int32
}

// Ops are the device's operations. Unless said otherwise outputs are overwritten, dtype is
// Info().Act, and integer tensors are I32. An output may share memory with another argument only
// where that is said. The arguments are checked by CheckAdd and its like and by the Check methods of
// the argument structs, which every device calls first; a call that is refused has written nothing.
type Ops interface {
	// Zero sets every element of x to zero.
	Zero(x Tensor) error
	// Copy sets dst = src: same element count and dtype.
	Copy(dst, src Tensor) error
	// Add: y = a + b elementwise. y may be a or b.
	Add(y, a, b Tensor) error

	// Embed: y[t] = w[ids[t]]. y [T,D], w [V,D], ids [T].
	Embed(y Tensor, w Weight, ids Tensor) error

	// RMSNorm: y[t] = x[t] * rstd[t] * g, rstd[t] = 1/sqrt(mean(x[t]^2) + eps). y, x [T,D]; g [D]; rstd [T] is kept for the backward.
	// (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4.)
	RMSNorm(y, rstd, x, g Tensor, eps float32) error
	// RMSNormBackward: dx = rstd*(g*dy - xhat*mean(g*dy*xhat)) + dres, xhat = x*rstd. dres may be the
	// zero Tensor (nothing is added) and may be dx itself. g is frozen and gets no gradient.
	RMSNormBackward(dx, dy, x, rstd, g, dres Tensor) error

	// Linear: y = x W^T (+ bias) + v B^T (+ res), v = s * x A^T.
	Linear(a LinearArgs) error
	// LinearBackward: from dy it forms dv = dy B (per part), dx = dy W + s * dv A, and ADDS
	// s * dv^T x to DA and dy^T v to DB of each span's LoRA.
	LinearBackward(a LinearBackwardArgs) error

	// RoPE splits the stacked projection and rotates: q, k, v from qkv.
	RoPE(a RoPEArgs) error
	// RoPEBackward: dqkv from dq, dk, dv; recomputes the norm from the kept qkv.
	RoPEBackward(a RoPEBackwardArgs) error

	// Attention: causal softmax attention of packed sequences.
	Attention(a AttentionArgs) error
	// AttentionBackward: dq, dk, dv. Every sequence starts at position 0 with all its keys in the batch (Pages nil).
	AttentionBackward(a AttentionBackwardArgs) error

	// SwiGLU: h = silu(gu[:, :F]) * gu[:, F:]. gu [T,2F], h [T,F]; silu(z) = z/(1+exp(-z)). (Shazeer 2020, arXiv 2002.05202, eq. 6.)
	SwiGLU(h, gu Tensor) error
	// SwiGLUBackward: dgu from dh and the kept gu.
	SwiGLUBackward(dgu, dh, gu Tensor) error

	// Route: the router of a mixture-of-experts block chooses TopK experts for each token.
	Route(a RouteArgs) error
	// RouteBackward: from the gradient of the gates it ADDS to dx, through the softmax and the frozen router.
	RouteBackward(a RouteBackwardArgs) error
	// Experts: y = the chosen experts' outputs times their gates, with shared-outer adapters (+ res).
	Experts(a ExpertsArgs) error
	// ExpertsBackward: overwrites dx and the gradient of the gates, ADDS to DA and DB of each span's LoRA.
	ExpertsBackward(a ExpertsBackwardArgs) error

	// LogProbs: out[t,j] = log softmax(z[t])[target[t,j]], z = the head's logits of h[t]. Full
	// logits are never stored.
	LogProbs(a LogProbsArgs) error
	// LogProbsBackward: for L = -sum w*out with w held constant: dz = (sum_j w[t,j]) softmax(z[t]) - sum_j w[t,j] e(target[t,j]);
	// overwrites dh, ADDS to the adapters' DA and DB. Rows whose weights are all zero cost nothing and get dh = 0.
	LogProbsBackward(a LogProbsBackwardArgs) error
	// Logits: z [T,V] and lse [T] (log-sum-exp) for sampling. For equal h the value z[t,i]-lse[t] has the bits of LogProbs with target i.
	Logits(a LogitsArgs) error

	// SumSquares returns the sum of squares of x, accumulated in float64 in a fixed order; it waits for the device.
	SumSquares(x Tensor) (float64, error)
	// AdamW: one decoupled-weight-decay Adam step on flat tensors, as torch.optim.AdamW does it; zeroes g afterwards.
	AdamW(a AdamWArgs) error
}

// LinearArgs: x [T,K], w [N,K], y [T,N]. v [T, >= P*maxR] receives the scaled down projections in
// columns [0, P*R) of each span's rows; it may be the zero Tensor when no span has a LoRA. bias [N] is added to
// every row, and res [T,N] last (y may be res), when they are not the zero Tensor. The order of the sum per
// element is: base product, bias, adapter product, residual. So with torch's linear and PEFT, where the
// adapter comes on top of the whole layer. The bias is frozen and has no gradient; the backward does not see it.
type LinearArgs struct {
	Y, V, X Tensor
	W       Weight
	Bias    Tensor
	Spans   []Span
	Res     Tensor
}

// LinearBackwardArgs: dy [T,N], dx [T,K], dv [T, >= P*maxR] is scratch. x and v are those of the
// forward. When AddDX, dx is added to instead of overwritten. When dx is the zero Tensor only adapter gradients are formed.
type LinearBackwardArgs struct {
	DX, DV, DY, V, X Tensor
	W                Weight
	Spans            []Span
	AddDX            bool
}

// RoPEArgs: qkv [T, (H+2K)*C] holds q heads, then k heads, then v heads of each token. q [T, H*C]; k and
// v [*, K*C] are key/value rows: token t is written to row Rows[t], or to row t when Rows is the zero Tensor. QNorm and KNorm [C] are the
// per-head RMSNorm gains, applied before the rotation, or zero Tensors. Cos, Sin [maxpos, C/2];
// Pos [T] I32. Element c of a head pairs with c + C/2 ("rotate half", as in transformers):
//
//	y[c] = x[c]*cos - x[c+C/2]*sin ; y[c+C/2] = x[c+C/2]*cos + x[c]*sin
//
// (Su et al. 2021, arXiv 2104.09864, eq. 34.)
type RoPEArgs struct {
	Q, K, V, QKV   Tensor
	QNorm, KNorm   Tensor
	Cos, Sin       Tensor
	Pos, Rows      Tensor
	Heads, KVHeads int
	Eps            float32
}

// RoPEBackwardArgs: dq [T,H*C], dk, dv [T,K*C] in batch order; dqkv [T,(H+2K)*C].
type RoPEBackwardArgs struct {
	DQKV, DQ, DK, DV, QKV Tensor
	QNorm, KNorm          Tensor
	Cos, Sin              Tensor
	Pos                   Tensor
	Heads, KVHeads        int
	Eps                   float32
}

// AttentionArgs: q, o [T, H*C]; k, v [rows, K*C]; lse [T,H] is log-sum-exp of the scaled scores, kept for the
// backward (zero Tensor: not wanted). Query head h reads key/value head h/(H/K). Scores are q.k*Scale. PageLen is the rows per page for sequences that have Pages.
// The sequences cover the rows 0..T-1 in order, without gaps.
type AttentionArgs struct {
	O, LSE, Q, K, V Tensor
	Seqs            []Seq
	PageLen         int
	Heads, KVHeads  int
	Scale           float32
}

// AttentionBackwardArgs: shapes as in [AttentionArgs] with k and v [T, K*C] in batch order, so KV is
// Begin; dq, dk, dv are overwritten.
type AttentionBackwardArgs struct {
	DQ, DK, DV, DO, O, LSE, Q, K, V Tensor
	Seqs                            []Seq
	Heads, KVHeads                  int
	Scale                           float32
}

// LogProbsArgs: h [T,D], w [V,D], target [T,J] I32, out [T,J], lse [T], v [T, >= maxR] (the head adapter's down projection, kept). A target
// of -1 asks for nothing: its out is 0.
type LogProbsArgs struct {
	Out, LSE, V, H Tensor
	W              Weight
	Spans          []Span
	Target         Tensor
}

// LogProbsBackwardArgs: dout [T,J] holds the weights w of L = -sum w*logprob; dv is scratch like v. A
// target of -1 counts as weight 0, whatever dout holds there.
type LogProbsBackwardArgs struct {
	DH, DV, DOut, LSE, V, H Tensor
	W                       Weight
	Spans                   []Span
	Target                  Tensor
}

// LogitsArgs: z [T,V], lse [T]; the rest as in [LogProbsArgs].
type LogitsArgs struct {
	Z, LSE, V, H Tensor
	W            Weight
	Spans        []Span
}

// AdamWArgs: p, g, m, v are flat tensors of equal length. The gradient used is g*GradScale (the
// clipping factor). Step counts from 1. In this order (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2; torch 2.11 _single_tensor_adamw):
//
//	p *= 1 - lr*decay
//	m += (g - m)*(1 - beta1);  v = beta2*v + (1-beta2)*g*g
//	p -= (lr/(1-beta1^step)) * m / (sqrt(v)/sqrt(1-beta2^step) + eps)
type AdamWArgs struct {
	P, G, M, V       Tensor
	LR, Beta1, Beta2 float64
	Eps, WeightDecay float64
	GradScale        float64
	Step             int64
}
