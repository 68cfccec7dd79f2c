package model

import "tinkerlocal/kernels"

// What a model takes on a device, before it is loaded. Any goroutine may call these.

// WeightBytes is the device memory of the weights: matrices in store, vectors in act. A device's own layout may add a few per cent.
func (s *Spec) WeightBytes(store, act kernels.DType) int64 {
	perLayer := 2 * s.Hidden
	if s.QKNorm {
		perLayer += 2 * s.HeadDim
	}
	if s.QKVBias {
		perLayer += s.QWidth() + 2*s.KVWidth()
	}
	vectors := int64(s.Layers)*int64(perLayer) + int64(s.Hidden)
	return (s.Params()-vectors)*int64(store.Size()) + vectors*int64(act.Size())
}

// KVBytes is the device memory of a key/value pool for that many positions, in whole pages: 2 L·positions·K·C values.
func (s *Spec) KVBytes(act kernels.DType, positions int) int64 {
	rows := int64(pagesFor(positions) * PageLen)
	return 2 * int64(s.Layers) * rows * int64(s.KVWidth()*act.Size())
}

// TrainBytes is [Base.TrainBytes] of a batch with one target per position and a backward.
func (s *Spec) TrainBytes(act kernels.DType, tokens, rank int) int64 {
	return s.bytes(act, shape{tokens: tokens, targets: 1, rank: rank, keep: true})
}
