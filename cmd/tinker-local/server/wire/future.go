package wire

import "tinkerlocal/engine/api"

// Future answers a request whose result comes later.
type Future struct {
	RequestID string `json:"request_id"`
	ModelID   string `json:"model_id,omitempty"`
	// SequenceIDs are those of the samples that were asked for, in their order. Clients since 0.38 fail without them.
	SequenceIDs []string `json:"sample_sequence_ids,omitempty"`
}

// RetrieveFutureRequest asks for a result.
type RetrieveFutureRequest struct {
	RequestID         string `json:"request_id"`
	AllowMetadataOnly bool   `json:"allow_metadata_only"`
}

func (*RetrieveFutureRequest) name() string   { return "retrieve_future" }
func (r *RetrieveFutureRequest) check() error { return required("request_id", r.RequestID) }

// QueueState says why a result is not there yet.
type QueueState string

// The states that clients know. They tell their user about the last two.
const (
	QueueActive         QueueState = "active"
	QueuePausedCapacity QueueState = "paused_capacity"
	QueuePausedRate     QueueState = "paused_rate_limit"
)

// Pending is the body that goes with status 408, after a wait of 20 to 40 seconds: clients ask again at once.
type Pending struct {
	QueueState QueueState `json:"queue_state"`
	Reason     string     `json:"queue_state_reason,omitempty"`
}

// Metadata announces a large result, once, to a client that allows it; it asks again when it has room.
type Metadata struct {
	Status string `json:"status"`
	Bytes  int    `json:"response_payload_size"`
}

// MetadataOnly announces a result of n bytes.
func MetadataOnly(n int) Metadata { return Metadata{Status: "complete_metadata", Bytes: n} }

// Failed is the body, with status 200, of work that was accepted and failed.
type Failed struct {
	Error    string `json:"error"`
	Category string `json:"category"`
}

// FailedOf describes err and says who can do something about it.
func FailedOf(err error) Failed {
	return Failed{Error: err.Error(), Category: api.CodeOf(err).Category()}
}

// Gone is the body that goes with status 410, for a request of a server that was started anew: clients send samples again.
func Gone(request string) ErrorResponse {
	return ErrorResponse{Detail: "request " + clip(request) + " is not known any more: the server was started anew", Code: api.Stale}
}

// CancelFutureRequest gives a sample up. Clients since 0.38 send it when client/dynamic_config says so.
type CancelFutureRequest struct {
	RequestID string `json:"request_id"`
}

func (*CancelFutureRequest) name() string   { return "cancel_future" }
func (r *CancelFutureRequest) check() error { return required("request_id", r.RequestID) }
