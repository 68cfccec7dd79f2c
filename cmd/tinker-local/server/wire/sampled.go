package wire

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// EncodeSampleOutput writes the protobuf form of a result of sampling, with t as the request had it. Equal results give equal bytes. An error
// is Internal: the engine made something that clients would refuse.
func EncodeSampleOutput(out api.SampleOutput, t *Targets) ([]byte, error) {
	if err := checkSampled(out); err != nil {
		return nil, err
	}
	if err := t.check(out.TargetPromptLogProbs); err != nil {
		return nil, err
	}
	size := 128 + 4*len(out.PromptLogProbs) + topKBytes(out.TopKPromptLogProbs)
	for _, s := range out.Sequences {
		size += 64 + 4*len(s.Tokens) + 4*len(s.LogProbs) + topKBytes(s.TopKLogProbs)
	}
	b := make([]byte, 0, size)
	for _, s := range out.Sequences {
		b = appendHeader(b, sampleSequences, sequenceBytes(s))
		if s.StopReason == api.StopReasonLength {
			b = appendVarint(b, sequenceStop, stopReasonLength)
		}
		b = appendHeader(b, sequenceTokens, 4*len(s.Tokens))
		b = appendInt32s(b, s.Tokens)
		if s.LogProbs != nil {
			b = appendHeader(b, sequenceLogProbs, 4*len(s.LogProbs))
			b = appendFloats(b, s.LogProbs)
		}
		b = appendTopK(b, sequenceTopK, s.TopKLogProbs)
	}
	if out.PromptLogProbs != nil {
		b = appendHeader(b, samplePromptLogProbs, 4*len(out.PromptLogProbs))
		b = appendFloats(b, out.PromptLogProbs)
	}
	b = appendTopK(b, sampleTopK, out.TopKPromptLogProbs)
	if t != nil {
		b = t.append(b, sampleTargets, out.TargetPromptLogProbs)
	}
	return appendAlt(b, out.PromptAltTokens), nil
}

// checkSampled says what clients would fail on.
func checkSampled(out api.SampleOutput) error {
	for i, s := range out.Sequences {
		if s.StopReason != api.StopReasonStop && s.StopReason != api.StopReasonLength {
			return api.Errorf(api.Internal, "sequence %d stopped for %q, wanted %q or %q", i, s.StopReason, api.StopReasonStop, api.StopReasonLength)
		}
		if s.LogProbs != nil && len(s.LogProbs) != len(s.Tokens) {
			return api.Errorf(api.Internal, "sequence %d has %d tokens and %d logprobs", i, len(s.Tokens), len(s.LogProbs))
		}
		if s.TopKLogProbs != nil && len(s.TopKLogProbs) != len(s.Tokens) {
			return api.Errorf(api.Internal, "sequence %d has %d tokens and %d lists", i, len(s.Tokens), len(s.TopKLogProbs))
		}
	}
	for i, row := range out.PromptAltTokens {
		if len(row) != len(out.PromptAltTokens[0]) {
			return api.Errorf(api.Internal, "prompt_alt_tokens: row %d has %d draws, wanted %d", i, len(row), len(out.PromptAltTokens[0]))
		}
	}
	return nil
}

func sequenceBytes(s api.SampledSequence) int {
	n := sizeMessage(sequenceTokens, 4*len(s.Tokens))
	if s.StopReason == api.StopReasonLength { // stop is 0, which proto3 leaves out
		n += sizeVarint(sequenceStop, stopReasonLength)
	}
	if s.LogProbs != nil {
		n += sizeMessage(sequenceLogProbs, 4*len(s.LogProbs))
	}
	return n + topKBytes(s.TopKLogProbs)
}

// columns is how many entries the longest row has.
func columns(rows [][]api.TokenLogProb) int {
	k := 0
	for _, row := range rows {
		k = max(k, len(row))
	}
	return k
}

// topKBytes is the size of a field TopkLogprobs; 0: there is none. Its number is below 16.
func topKBytes(rows [][]api.TokenLogProb) int {
	if k := columns(rows); k > 0 {
		return sizeMessage(sampleTopK, topKSize(k, len(rows)))
	}
	return 0
}

// topKSize is the size of the message.
func topKSize(k, n int) int {
	return 2*sizeMessage(topKTokens, 4*k*n) + sizeVarint(topKK, k) + sizeVarint(topKLength, n)
}

// appendTopK writes rows as two matrices; what a row has not is filled. Rows without any entry are no field.
func appendTopK(b []byte, num protowire.Number, rows [][]api.TokenLogProb) []byte {
	k := columns(rows)
	if k == 0 {
		return b
	}
	cells := 4 * k * len(rows)
	b = appendHeader(b, num, topKSize(k, len(rows)))
	b = appendHeader(b, topKTokens, cells)
	for _, row := range rows {
		for i := range k {
			token := topKNoToken
			if i < len(row) {
				token = row[i].Token
			}
			b = protowire.AppendFixed32(b, uint32(token))
		}
	}
	b = appendHeader(b, topKLogProbs, cells)
	for _, row := range rows {
		for i := range k {
			logprob := topKNoLogProb
			if i < len(row) {
				logprob = row[i].LogProb
			}
			b = appendFloats(b, []float32{logprob})
		}
	}
	b = appendVarint(b, topKK, k)
	return appendVarint(b, topKLength, len(rows))
}

// appendAlt writes draws as two tensors; nil is no field.
func appendAlt(b []byte, rows [][]api.TokenLogProb) []byte {
	if rows == nil {
		return b
	}
	k := columns(rows)
	dims, n := []int64{int64(len(rows)), int64(k)}, 4*k*len(rows)
	tensor := func(b []byte, num protowire.Number, kind dtype, value func(api.TokenLogProb) uint32) []byte {
		return appendTensor(b, num, kind, dims, n, func(b []byte) []byte {
			for _, row := range rows {
				for _, x := range row {
					b = protowire.AppendFixed32(b, value(x))
				}
			}
			return b
		})
	}
	one := sizeMessage(tensorDense, n) + len(tensorHead(int32Type, dims)) // of either: both types are below 128
	b = appendHeader(b, sampleAlt, 2*sizeMessage(altTokens, one))
	b = tensor(b, altTokens, int32Type, func(x api.TokenLogProb) uint32 { return uint32(x.Token) })
	return tensor(b, altLogProbs, float32Type, func(x api.TokenLogProb) uint32 { return math.Float32bits(x.LogProb) })
}
