package wire

import (
	"google.golang.org/protobuf/encoding/protowire"

	"tinkerlocal/engine/api"
)

// EncodeSampleOutput writes the protobuf form of a result of sampling. Equal results give equal bytes. An error is
// Internal: the engine made something that clients would refuse.
func EncodeSampleOutput(out api.SampleOutput) ([]byte, error) {
	if err := checkSampled(out); err != nil {
		return nil, err
	}
	k := 0
	for _, row := range out.TopKPromptLogProbs {
		k = max(k, len(row))
	}
	size := 64 + 4*len(out.PromptLogProbs) + 8*k*len(out.TopKPromptLogProbs)
	for _, s := range out.Sequences {
		size += 32 + 4*len(s.Tokens) + 4*len(s.LogProbs)
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
	}
	if out.PromptLogProbs != nil {
		b = appendHeader(b, samplePromptLogProbs, 4*len(out.PromptLogProbs))
		b = appendFloats(b, out.PromptLogProbs)
	}
	if k > 0 {
		b = appendTopK(b, out.TopKPromptLogProbs, k)
	}
	return b, nil
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
	return n
}

// appendTopK writes rows as two matrices of k columns; what a row has not is filled.
func appendTopK(b []byte, rows [][]api.TokenLogProb, k int) []byte {
	cells := 4 * k * len(rows)
	b = appendHeader(b, sampleTopK, sizeMessage(topKTokens, cells)+sizeMessage(topKLogProbs, cells)+sizeVarint(topKK, k)+sizeVarint(topKLength, len(rows)))
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
