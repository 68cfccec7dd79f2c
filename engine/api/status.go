package api

import "time"

// The states of an engine.
const (
	StatusReady      = "ready"
	StatusClosed     = "closed"
	StatusDeviceLost = "device_lost" // nothing more will run; Status.Error says why
)

// Status is what an engine has and does at one moment. Lists are never nil and in a fixed order.
type Status struct {
	State string `json:"state"`
	Error string `json:"error,omitempty"`

	Device string       `json:"device"`
	Memory MemoryStatus `json:"memory"`

	Doing      string         `json:"doing"`             // the work on the device now: "create model", "forward_backward of RUN", "sample"; "": it is idle
	Since      time.Time      `json:"since,omitzero"`    // when Doing began
	QueuedJobs int            `json:"queued_jobs"`       // models, samplers and copies that wait to be made or freed
	Loading    *LoadingStatus `json:"loading,omitempty"` // the base model that is being loaded now

	Bases    []BaseStatus    `json:"bases"`    // loaded, by name
	Sessions []SessionStatus `json:"sessions"` // open, the oldest first
	Runs     []RunStatus     `json:"runs"`     // open, the oldest first

	SampleRequests     int `json:"sample_requests"` // that wait or run
	SampleRequestLimit int `json:"sample_request_limit"`
	RunLimit           int `json:"run_limit"`
}

// MemoryStatus is the device's memory, in bytes.
type MemoryStatus struct {
	Used  int64 `json:"used_bytes"`  // by bases, adapters, snapshots, key/value pools and batches
	Limit int64 `json:"limit_bytes"` // of Used; 0: what the device has
	Total int64 `json:"total_bytes"` // of the device; 0: unknown
	Free  int64 `json:"free_bytes"`  // of the device, at most a second ago unless the device was busy; 0: unknown

	Holds     int   `json:"holds"`            // forwards whose activations are kept for a backward
	HoldBytes int64 `json:"hold_bytes"`       // in Used; given back when somebody needs them
	IdleBytes int64 `json:"idle_bases_bytes"` // in Used, of bases that nobody uses; given back when somebody needs them
}

// LoadingStatus says how far the loading of a base model is.
type LoadingStatus struct {
	Model string `json:"model"`
	Done  int64  `json:"params_done"`
	Total int64  `json:"params_total"`
}

// BaseStatus is a loaded base model.
type BaseStatus struct {
	Name     string    `json:"name"`
	Params   int64     `json:"params"`
	Bytes    int64     `json:"bytes"`
	Runs     int       `json:"runs"`
	Samplers int       `json:"samplers"`
	Idle     bool      `json:"idle"` // nobody uses it: it is freed when memory is short
	LastUsed time.Time `json:"last_used"`

	Sampling SamplingStatus `json:"sampling"`
}

// SamplingStatus is the decode batch of a base model. It has no key/value pool before the first request.
type SamplingStatus struct {
	Waiting   int   `json:"sequences_waiting"` // sequences without a place, and prompts that will be read for several
	Running   int   `json:"sequences_running"`
	Positions int   `json:"kv_positions"`      // of the pool
	Used      int   `json:"kv_positions_used"` // in whole pages
	Bytes     int64 `json:"kv_bytes"`          // of the pool and of a step
}

// SessionStatus is an open session.
type SessionStatus struct {
	ID       string    `json:"session_id"`
	Owner    string    `json:"owner"`
	Opened   time.Time `json:"opened"`
	Runs     int       `json:"runs"`
	Samplers int       `json:"samplers"`
}

// The states of a run.
const (
	RunIdle    = "idle"    // nothing is asked of it
	RunQueued  = "queued"  // its operations wait for their turn
	RunGap     = "gap"     // they wait for a sequence number that has not arrived
	RunRunning = "running" // an operation has started; others may have their turns in between
	RunStarved = "starved" // it has started, and waits for memory that other operations hold
	RunPaused  = "paused"  // it has started, and waits for a loss, or for the checkpoint store
)

// RunStatus is an open training run.
type RunStatus struct {
	ID          string    `json:"run_id"`
	Session     string    `json:"session_id"`
	Owner       string    `json:"owner"`
	BaseModel   string    `json:"base_model"`
	Rank        int       `json:"rank"`
	Bytes       int64     `json:"bytes"` // of its adapter with gradients and moments
	Version     int64     `json:"version"`
	Step        int64     `json:"step"`
	State       string    `json:"state"`
	Operation   string    `json:"operation,omitempty"` // that has started
	Queued      int       `json:"queued"`              // operations that wait
	Background  int       `json:"background"`          // saves and loads that are on their way
	LastRequest time.Time `json:"last_request_time"`
}
