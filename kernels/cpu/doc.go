// Package cpu is the device that people without a GPU use: plain Go and assembly generated with avo (see asm), no cgo.
//
// There are two variants, chosen when the device is opened: "avx2" (AVX2 and FMA) and "portable" (Go alone, products never fused, so its bits
// are the same on every architecture). Within a variant every bit of a result follows from the values that the contract names
// and from nothing else: not from the batch around them, the number of threads, or the cut into tiles. The orders:
//
//   - Products (Linear, logits, scores, and all backward products): per element, segments of 256 steps from the start of the reduction, each
//     one chain of multiply-adds from zero in ascending order, segment sums added in ascending order. The reduction runs over K for
//     y = x W^T and v = x A^T; over the rank for v B^T; over the rows of W for dy W; over a part's rows for dy B; over all parts' ranks for
//     dv A. Then base + adapter + residual, two at a time. (Fused in avx2, two roundings in portable.)
//   - Adapter gradients: segments of 128 tokens from a span's first token, each one chain, added to the gradient one by one in span order.
//   - Experts: each product as above; sums over a token's experts in ascending order of their ids, in float32, each term (gate times output)
//     rounded before it is added. The router's probabilities are exp(z - max) divided by their softmax sum.
//   - RMSNorm and dot products of rows: avx2 adds element i into lane i%32 up to the last full 32, the rest into lane i%8, then a
//     fixed tree; portable adds in ascending order in float64.
//   - Softmax sums: avx2 lane i%8, then a tree, i counting from the row's first key or the vocabulary block's first row; portable
//     ascending in float64. Vocabulary blocks of 512 rows are merged in ascending order.
//   - Attention: keys by absolute position, see attention.go.
//   - SumSquares: float64, pieces of 65536.
//
// exp is the package's own in both variants, within 2 ulp of the true value; below -87.33 it is 0.
//
// Ops finish before they return, on the caller and on workers that belong to the device; nothing else uses the device's memory, and an op
// allocates none once its scratch has grown to the sizes in use. Scratch is not counted against Options.MemoryLimit: per
// thread some MiB, and in the backward of attention about (2*96 + 2*C) floats per key of the longest sequence; per device, in the
// backward of the head, copies of the tokens with a weight and at most 16 MiB of logits or 256 per token, whichever is more.
package cpu
