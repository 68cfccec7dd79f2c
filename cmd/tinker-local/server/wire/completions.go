package wire

import (
	"time"

	"tinkerlocal/engine/api"
)

// The bodies of this file are those of clients since 0.38.

// clientBlock is how many sequence numbers each client of a sampling session has: client n has those from n times this on.
const clientBlock = 1_000_000_000

// Client is the client of the sampling session that a sample is from.
func (r *SampleRequest) Client() int64 { return r.SeqID / clientBlock }

// JoinSamplingSessionRequest asks for a number for one more client of a sampling session.
type JoinSamplingSessionRequest struct {
	SamplingSessionID string `json:"sampling_session_id"`
}

func (*JoinSamplingSessionRequest) name() string { return "join_sampling_session" }
func (r *JoinSamplingSessionRequest) check() error {
	return required("sampling_session_id", r.SamplingSessionID)
}

// JoinSamplingSessionResponse has the client's number.
type JoinSamplingSessionResponse struct {
	Client int64  `json:"client_counter"`
	Type   string `json:"type"`
}

// JoinedSamplingSession answers with a client's number.
func JoinedSamplingSession(client int64) JoinSamplingSessionResponse {
	return JoinSamplingSessionResponse{client, "join_sampling_session"}
}

// RetrieveFuturesRequest asks which samples of a client have ended.
type RetrieveFuturesRequest struct {
	Target struct {
		Type              string `json:"type"`
		SamplingSessionID string `json:"sampling_session_id"`
		Client            int64  `json:"cloned_sampler_id"`
	} `json:"target"`
	Cursor    int64    `json:"prev_cursor"` // of the last answer; what came with it or before is known
	Timeout   *float64 `json:"timeout"`     // seconds
	Retrieved []string `json:"retrieved_request_ids"`
}

func (*RetrieveFuturesRequest) name() string { return "retrieve_futures" }

func (r *RetrieveFuturesRequest) check() error {
	if t := r.Target.Type; t != "" && t != "sampling_session" {
		return api.Errorf(api.Unsupported, "target.type is %q, wanted \"sampling_session\"", clip(t))
	}
	if err := required("target.sampling_session_id", r.Target.SamplingSessionID); err != nil {
		return err
	}
	if err := sequence("target.cloned_sampler_id", r.Target.Client, 0); err != nil {
		return err
	}
	if r.Timeout != nil && !(*r.Timeout >= 0) {
		return api.Errorf(api.BadRequest, "timeout is %v, wanted 0 or more", *r.Timeout)
	}
	return sequence("prev_cursor", r.Cursor, 0)
}

// Wait is how long the answer may take, at most longest.
func (r *RetrieveFuturesRequest) Wait(longest time.Duration) time.Duration {
	if r.Timeout == nil || *r.Timeout >= longest.Seconds() {
		return longest
	}
	return time.Duration(*r.Timeout * float64(time.Second))
}

// Completion tells of a request that has ended. Its result, or why it failed, is fetched on its own.
type Completion struct {
	State     string `json:"state"`
	RequestID string `json:"request_id"`
}

// CompletionOf tells of a request that has ended.
func CompletionOf(request string, failed bool) Completion {
	if failed {
		return Completion{"failed", request}
	}
	return Completion{"finished", request}
}

// RetrieveFuturesResponse tells of requests that have ended.
type RetrieveFuturesResponse struct {
	Completions []Completion `json:"completions"`
	Cursor      int64        `json:"cursor"`
}

// CreateCustomLossRequest sends a loss as a graph of torch's operations. Clients do so only when client/config says that a server runs such losses.
type CreateCustomLossRequest struct {
	SessionID string `json:"session_id"`
	SeqID     int64  `json:"custom_loss_seq_id"`
	Name      string `json:"name"`
}

func (*CreateCustomLossRequest) name() string { return "create_custom_loss" }

func (r *CreateCustomLossRequest) check() error {
	if err := required("session_id", r.SessionID); err != nil {
		return err
	}
	return sequence("custom_loss_seq_id", r.SeqID, 0)
}

// Refusal is why the loss is not taken.
func (r *CreateCustomLossRequest) Refusal() error {
	return api.Errorf(api.Unsupported, "custom loss %q: graphs of torch operations are not run by this server; clients run them (client/config has custom_loss_server_side false), and a loss that the server is to run is a WebAssembly module, used by its name as loss_fn", clip(r.Name))
}
