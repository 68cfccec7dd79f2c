package wire

import (
	"tinkerlocal/engine/api"
)

// ClientConfigRequest is the first request of every client, to client/config, and the periodic one, to
// client/dynamic_config.
type ClientConfigRequest struct {
	SDKVersion string `json:"sdk_version"`
}

func (*ClientConfigRequest) name() string { return "client/config" }
func (*ClientConfigRequest) check() error { return nil }

// ClientConfig steers a client. All fields are optional; a nil pointer leaves the client's default, which stands
// beside it. Flags that would need more of a server than this program has are not listed.
type ClientConfig struct {
	Tokens               *bool `json:"pjwt_auth_enabled,omitempty"`            // false. true: keys are exchanged for tokens, which whoami reads
	UsePyqwestTransport  *bool `json:"use_pyqwest_transport,omitempty"`        // true. false: plain httpx, the safe choice for one's own server
	ParallelChunks       *bool `json:"parallel_fwdbwd_chunks,omitempty"`       // true. false: the chunks of a call come in order
	CompressRequests     *bool `json:"proto_compress_fwdbwd,omitempty"`        // false. true: forward_backward comes in zstd
	ChunkDatums          int   `json:"fwdbwd_max_chunk_len,omitempty"`         // 1024
	ChunkBytes           int   `json:"fwdbwd_max_chunk_bytes_count,omitempty"` // 5,000,000
	ConcurrentSamples    int   `json:"sample_max_concurrent_requests,omitempty"`
	SampleStuckDetection *bool `json:"sample_enable_stuck_detection,omitempty"` // true: a client gives up after 2 hours without any progress
	CreateViaLoad        *bool `json:"create_model_via_load_weights,omitempty"` // false. true: see LoadWeightsRequest.SessionID
	TellOfSamples        *bool `json:"sample_use_retrieve_futures,omitempty"`   // false. true (since 0.38): one retrieve_futures for all samples of a client, instead of a poll for each
	JoinSamplingSession  *bool `json:"sample_join_sampling_session,omitempty"`  // false. true (since 0.38): copies of a sampling client ask for their number
	ProtoRequests        *bool `json:"proto_write_fwdbwd,omitempty"`            // SDKs before 0.25: protobuf bodies of forward_backward
}

// ClientDynamicConfig is fetched again while a client lives.
type ClientDynamicConfig struct {
	RefreshSeconds int   `json:"refresh_interval_sec,omitempty"`  // 300; at least 10
	CancelSamples  *bool `json:"sample_cancel_enabled,omitempty"` // false. true (since 0.38): given-up samples are told to cancel_future
}

// CreateSessionRequest begins a session.
type CreateSessionRequest struct {
	Tags         []string `json:"tags"`
	UserMetadata texts    `json:"user_metadata"`
	SDKVersion   string   `json:"sdk_version"`
	ProjectID    string   `json:"project_id"`
	DisplayName  string   `json:"display_name"` // since 0.38
}

func (*CreateSessionRequest) name() string { return "create_session" }
func (*CreateSessionRequest) check() error { return nil }

// Metadata is UserMetadata as a plain map.
func (r *CreateSessionRequest) Metadata() map[string]string { return r.UserMetadata }

// CreateSessionResponse names a session. The client logs the messages.
type CreateSessionResponse struct {
	SessionID      string `json:"session_id"`
	InfoMessage    string `json:"info_message,omitempty"`
	WarningMessage string `json:"warning_message,omitempty"`
	ErrorMessage   string `json:"error_message,omitempty"`
}

// HeartbeatRequest says every 10 seconds that a session is alive. It is answered with {}.
type HeartbeatRequest struct {
	SessionID string `json:"session_id"`
}

func (*HeartbeatRequest) name() string   { return "session_heartbeat" }
func (r *HeartbeatRequest) check() error { return required("session_id", r.SessionID) }

// HeartbeatResponse is {}.
type HeartbeatResponse struct {
	Type string `json:"type"`
}

// Heartbeat is the answer to a heartbeat.
func Heartbeat() HeartbeatResponse { return HeartbeatResponse{Type: "session_heartbeat"} }

// TelemetryResponse has the one status that keeps clients from sending again.
type TelemetryResponse struct {
	Status string `json:"status"`
}

// TelemetryAccepted is the answer to telemetry.
func TelemetryAccepted() TelemetryResponse { return TelemetryResponse{Status: "accepted"} }

// HealthResponse answers healthz.
type HealthResponse struct {
	Status string `json:"status"`
}

// Healthy is the answer of a server that works.
func Healthy() HealthResponse { return HealthResponse{Status: "ok"} }

// SupportedModel is one model of a server.
type SupportedModel struct {
	ModelName        string `json:"model_name"`
	MaxContextLength int    `json:"max_context_length,omitempty"` // tokens
	Trainable        bool   `json:"trainable"`                    // since 0.38
	Sampleable       bool   `json:"sampleable"`                   // since 0.38
}

// CapabilitiesResponse answers get_server_capabilities.
type CapabilitiesResponse struct {
	SupportedModels []SupportedModel `json:"supported_models"`
}

// ErrorResponse is the body of a request that was refused at once. The client prints it.
type ErrorResponse struct {
	Detail string   `json:"detail"`
	Code   api.Code `json:"code"`
}

// ErrorOf describes err.
func ErrorOf(err error) ErrorResponse {
	return ErrorResponse{Detail: err.Error(), Code: api.CodeOf(err)}
}

// AuthTokenResponse answers auth/token.
type AuthTokenResponse struct {
	JWT string `json:"jwt"`
}

// APIKeyResponse answers auth/apikey/me, which the command line of SDKs since 0.38 asks when somebody logs in. All fields must be there.
type APIKeyResponse struct {
	KeyID   int64  `json:"key_id"`
	Name    string `json:"name"`
	Note    string `json:"note"`
	Details struct {
		Organization struct {
			Name string `json:"name"`
		} `json:"org_details"`
		User struct {
			Email string `json:"email"`
		} `json:"user_details"`
	} `json:"details"`
}

// APIKeyOf describes a key of owner's. There are no addresses of mail here: the one that has to be there is of the machine itself.
func APIKeyOf(id int64, owner string) APIKeyResponse {
	r := APIKeyResponse{KeyID: id, Name: "key of " + owner}
	r.Details.Organization.Name, r.Details.User.Email = "tinker-local", owner+"@localhost"
	return r
}
