package wire

import "google.golang.org/protobuf/encoding/protowire"

// The messages of the protobuf package tinker_public (proto3), as far as a server reads or writes them. All arrays of
// numbers lie in bytes fields, little-endian, row-major. A map is a repeated message of key 1 and value 2.
const (
	mapKey   protowire.Number = 1
	mapValue protowire.Number = 2

	// ForwardBackwardRequest
	requestModelID     protowire.Number = 1 // string
	requestSeqID       protowire.Number = 2 // int32
	requestData        protowire.Number = 3 // repeated Datum
	requestLossFn      protowire.Number = 4 // string
	requestConfig      protowire.Number = 5 // map<string, double>
	requestForwardOnly protowire.Number = 6 // bool
	requestConfigV2    protowire.Number = 7 // map<string, LossConfigValue>; since 0.38 beside field 5, with its numbers repeated

	// LossConfigValue, a oneof
	configNumber protowire.Number = 1 // double
	configText   protowire.Number = 2 // string

	// Datum. Fields 3 and 4 (since 0.38) say which earlier samples the tokens came from; they are skipped.
	datumChunks protowire.Number = 1 // repeated Chunk
	datumInputs protowire.Number = 2 // map<string, Tensor>

	// Chunk, a oneof
	chunkText  protowire.Number = 1 // EncodedTextChunk
	chunkImage protowire.Number = 2 // ImageChunk
	chunkDmel  protowire.Number = 3 // DmelChunk

	textTokens protowire.Number = 1 // EncodedTextChunk: int32 in bytes

	// Tensor: dense and CSR are a oneof.
	tensorDense protowire.Number = 1 // bytes, of dtype
	tensorCSR   protowire.Number = 2 // SparseCsr
	tensorDType protowire.Number = 3 // DType
	tensorShape protowire.Number = 4 // repeated int64; none: one dimension

	// SparseCsr
	csrValues protowire.Number = 1 // bytes, of the tensor's dtype
	csrRows   protowire.Number = 2 // crow_indices: int64 in bytes, rows+1
	csrCols   protowire.Number = 3 // col_indices: int64 in bytes, one per value

	// ForwardBackwardOutput
	outputType    protowire.Number = 1 // string
	outputRecords protowire.Number = 2 // repeated ArrayRecord
	outputMetrics protowire.Number = 3 // map<string, double>

	// ArrayRecord: the outputs of a run of datums whose trailing dimensions agree. Field 1 (type_tag) is not used.
	recordFields protowire.Number = 2 // map<string, BatchedTensor>
	recordDatums protowire.Number = 3 // int64

	// BatchedTensor: datum i has data[offsets[i]:offsets[i+1]], of shape [?, trailing_shape...].
	batchedData     protowire.Number = 1 // bytes
	batchedOffsets  protowire.Number = 2 // int64 in bytes, datums+1; they count bytes
	batchedDType    protowire.Number = 3 // DType
	batchedTrailing protowire.Number = 4 // repeated int64

	// SampleResponse
	sampleSequences      protowire.Number = 1 // repeated SampledSequence
	samplePromptLogProbs protowire.Number = 2 // optional: float32 in bytes, NaN for a token without
	sampleTopK           protowire.Number = 3 // optional TopkLogprobs
	sampleTargets        protowire.Number = 5 // optional Tensor, since 0.38
	sampleAlt            protowire.Number = 6 // optional PromptAltTokens, since 0.38

	// PromptAltTokens: two dense tensors of a row per token of the prompt but the first
	altTokens   protowire.Number = 1 // Tensor of int32
	altLogProbs protowire.Number = 2 // Tensor of float32

	// SampledSequence
	sequenceStop     protowire.Number = 1 // StopReason
	sequenceTokens   protowire.Number = 2 // int32 in bytes
	sequenceLogProbs protowire.Number = 3 // optional: float32 in bytes
	sequenceTopK     protowire.Number = 4 // optional TopkLogprobs, since 0.38

	// TopkLogprobs: two matrices of length rows and k columns
	topKTokens   protowire.Number = 1 // int32 in bytes
	topKLogProbs protowire.Number = 2 // float32 in bytes
	topKK        protowire.Number = 3 // uint32
	topKLength   protowire.Number = 4 // uint32
)

// The cells of top-k rows that have fewer than k entries. A row of nothing else is None to the client.
const (
	topKNoToken   int32   = 0
	topKNoLogProb float32 = -99999
)

// StopReason
const (
	stopReasonStop   = 0
	stopReasonLength = 1
)

// dtype is the enum DType.
type dtype int32

const (
	float32Type  dtype = 1
	int64Type    dtype = 2
	int32Type    dtype = 3
	bfloat16Type dtype = 4
)

// bytes is the size of one value, 0 for a dtype that is not one.
func (d dtype) bytes() int {
	switch d {
	case float32Type, int32Type:
		return 4
	case int64Type:
		return 8
	case bfloat16Type:
		return 2
	}
	return 0
}
