// Package sample draws tokens: the choice of one token from a row of logits, when a sequence
// ends, and the batch of sequences that decode together on one base model.
//
// Nothing here depends on the clock, on the order of requests or on who shares a batch: a token is a
// function of the logits, the parameters, the seed, the sample's index and the token's place in it.
package sample

import "math/bits"

// philox is the counter-based generator Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011), section 3.3: ten rounds of two 32x32-bit products.
func philox(ctr [4]uint32, key [2]uint32) [4]uint32 {
	for range 10 {
		hi0, lo0 := bits.Mul32(0xD2511F53, ctr[0])
		hi1, lo1 := bits.Mul32(0xCD9E8D57, ctr[2])
		ctr = [4]uint32{hi1 ^ ctr[1] ^ key[0], lo1, hi0 ^ ctr[3] ^ key[1], lo0}
		key[0] += 0x9E3779B9
		key[1] += 0xBB67AE85
	}
	return ctr
}

// uniform is a number in [0, 1) with 53 random bits that depends on nothing but its arguments: draw
// counts the tokens of one sample from 0.
func uniform(seed int64, sample, draw int) float64 {
	r := philox(
		[4]uint32{uint32(draw), uint32(uint64(draw) >> 32), uint32(sample), uint32(uint64(sample) >> 32)},
		[2]uint32{uint32(seed), uint32(uint64(seed) >> 32)},
	)
	return float64((uint64(r[0])<<32|uint64(r[1]))>>11) / (1 << 53)
}
