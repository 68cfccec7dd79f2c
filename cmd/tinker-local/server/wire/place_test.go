package wire

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// TestPlaceOfRefusals: a request whose data cannot be read still says whose it is and at which number, so that what follows does not
// wait for it.
func TestPlaceOfRefusals(t *testing.T) {
	message := func(model string, seq uint64) []byte {
		b := protowire.AppendString(protowire.AppendTag(nil, requestModelID, protowire.BytesType), model)
		b = protowire.AppendVarint(protowire.AppendTag(b, requestSeqID, protowire.VarintType), seq)
		return protowire.AppendBytes(protowire.AppendTag(b, requestData, protowire.BytesType), []byte{0xff}) // no datum
	}
	for _, c := range []struct {
		name   string
		decode func([]byte) (ForwardBackwardRequest, error)
		body   []byte
		model  string
		seq    int64
	}{
		{"protobuf", DecodeForwardBackward, message("m", 7), "m", 7},
		{"protobuf, no number for a place", DecodeForwardBackward, message("m", 1<<40), "", 0},
		{"protobuf, no id", DecodeForwardBackward, message("", 7), "", 0},
		{"a datum of no sense", DecodeForwardBackwardJSON, []byte(`{"forward_input":{"data":[{"model_input":{"chunks":[{"type":"image"}]}}],"loss_fn":"x"},"model_id":"m","seq_id":7}`), "m", 7},
		{"a token of no sense", DecodeForwardBackwardJSON, []byte(`{"forward_input":{"data":[{"model_input":{"chunks":[{"tokens":[1.5]}]}}],"loss_fn":"x"},"model_id":"m","seq_id":7}`), "m", 7},
		{"JSON, no number for a place", DecodeForwardBackwardJSON, []byte(`{"forward_input":{"data":[],"loss_fn":"x"},"model_id":"m","seq_id":-7}`), "", 0},
		{"no JSON", DecodeForwardBackwardJSON, []byte(`{"model_id":"m","seq_id":7`), "", 0},
	} {
		r, err := c.decode(c.body)
		if err == nil {
			t.Errorf("%s: no error", c.name)
		}
		if r.ModelID != c.model || r.SeqID != c.seq || len(r.Input.Data) != 0 {
			t.Errorf("%s: the place is model %q, number %d, wanted %q, %d (%v)", c.name, r.ModelID, r.SeqID, c.model, c.seq, err)
		}
	}
}
