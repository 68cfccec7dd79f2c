package wire

import (
	"net/url"
	"strconv"
	"time"

	"tinkerlocal/engine/api"
)

// Checkpoint is an entry of a list.
type Checkpoint struct {
	ID         string    `json:"checkpoint_id"`   // KIND/NAME
	Type       string    `json:"checkpoint_type"` // training, sampler or external
	Time       time.Time `json:"time"`
	TinkerPath api.Path  `json:"tinker_path"`
	Bytes      int64     `json:"size_bytes"`
	Public     bool      `json:"public"`
	Expires    time.Time `json:"expires_at,omitzero"`

	UserMetadata map[string]string `json:"user_metadata,omitempty"` // since 0.38
}

// CheckpointOf is the wire's form of c.
func CheckpointOf(c api.Checkpoint) Checkpoint {
	kind := "training"
	switch c.Path.Kind {
	case api.KindSampler:
		kind = "sampler"
	case api.KindExternal:
		kind = "external" // since 0.38
	}
	return Checkpoint{c.Path.ID(), kind, c.Created.UTC(), c.Path, c.Bytes, c.Public, inUTC(c.Expires), c.UserMetadata}
}

func inUTC(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

func checkpointOf(c *api.Checkpoint) *Checkpoint {
	if c == nil {
		return nil
	}
	out := CheckpointOf(*c)
	return &out
}

// TrainingRun is an entry of a list, and the answer to training_runs/ID.
type TrainingRun struct {
	ID                    string            `json:"training_run_id"`
	BaseModel             string            `json:"base_model"`
	Owner                 string            `json:"model_owner"`
	IsLora                bool              `json:"is_lora"`
	Corrupted             bool              `json:"corrupted"`
	LoraRank              int               `json:"lora_rank"`
	LastRequest           time.Time         `json:"last_request_time"`
	LastCheckpoint        *Checkpoint       `json:"last_checkpoint,omitempty"`
	LastSamplerCheckpoint *Checkpoint       `json:"last_sampler_checkpoint,omitempty"`
	UserMetadata          map[string]string `json:"user_metadata,omitempty"`
}

// TrainingRunOf is the wire's form of r.
func TrainingRunOf(r api.RunRecord) TrainingRun {
	return TrainingRun{
		ID: r.ID, BaseModel: r.BaseModel, Owner: r.Owner, IsLora: true, LoraRank: r.Lora.Rank, LastRequest: r.LastRequest.UTC(),
		LastCheckpoint: checkpointOf(r.LastCheckpoint), LastSamplerCheckpoint: checkpointOf(r.LastSamplerCheckpoint), UserMetadata: r.UserMetadata,
	}
}

// Cursor says which part of a list an answer has.
type Cursor struct {
	Offset int `json:"offset"`
	Limit  int `json:"limit"`
	Total  int `json:"total_count"`
}

// TrainingRunsResponse answers training_runs.
type TrainingRunsResponse struct {
	TrainingRuns []TrainingRun `json:"training_runs"`
	Cursor       Cursor        `json:"cursor"`
}

// TrainingRunsOf is a page of runs, as it was asked for.
func TrainingRunsOf(p api.RunPage, asked api.Page) TrainingRunsResponse {
	out := TrainingRunsResponse{make([]TrainingRun, len(p.Runs)), Cursor{asked.Offset, asked.Limit, p.Total}}
	for i, r := range p.Runs {
		out.TrainingRuns[i] = TrainingRunOf(r)
	}
	return out
}

// CheckpointsResponse answers checkpoints and training_runs/ID/checkpoints. Without a cursor, clients take it as the whole list.
type CheckpointsResponse struct {
	Checkpoints []Checkpoint `json:"checkpoints"`
	Cursor      *Cursor      `json:"cursor,omitempty"`
}

// CheckpointsOf is a page of checkpoints, as it was asked for; nil says that it is the whole list.
func CheckpointsOf(p api.CheckpointPage, asked *api.Page) CheckpointsResponse {
	out := CheckpointsResponse{Checkpoints: make([]Checkpoint, len(p.Checkpoints))}
	if asked != nil {
		out.Cursor = &Cursor{asked.Offset, asked.Limit, p.Total}
	}
	for i, c := range p.Checkpoints {
		out.Checkpoints[i] = CheckpointOf(c)
	}
	return out
}

// TTLRequest is the body of PUT .../ttl. Publish, unpublish and delete have none.
type TTLRequest struct {
	Seconds *int64 `json:"ttl_seconds"` // nil: the checkpoint is kept
}

func (*TTLRequest) name() string   { return "ttl" }
func (r *TTLRequest) check() error { return checkTTL(r.Seconds) }

// TTL is how long the checkpoint lives from now on; 0: for ever.
func (r *TTLRequest) TTL() time.Duration { return ttl(r.Seconds) }

// ProjectRequest is the body of PUT sessions/ID/project.
type ProjectRequest struct {
	ProjectID string `json:"project_id"`
}

func (*ProjectRequest) name() string   { return "project" }
func (r *ProjectRequest) check() error { return required("project_id", r.ProjectID) }

// SessionsResponse answers sessions.
type SessionsResponse struct {
	Sessions []string `json:"sessions"`
}

// SessionResponse answers sessions/ID. Both lists must be there.
type SessionResponse struct {
	TrainingRunIDs []string          `json:"training_run_ids"`
	SamplerIDs     []string          `json:"sampler_ids"`
	UserMetadata   map[string]string `json:"user_metadata,omitempty"` // since 0.38
	DisplayName    string            `json:"display_name,omitempty"`  // since 0.38
}

// ArchiveResponse says where a checkpoint can be downloaded, without further credentials, and until when.
type ArchiveResponse struct {
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

// ExternalURLsResponse says where each file of weights for other programs can be downloaded, and until when; since 0.38.
type ExternalURLsResponse struct {
	URLs    map[string]string `json:"urls"` // by the file's name
	Expires time.Time         `json:"expires"`
}

// TraceResponse answers sessions/ID/trace_export.
type TraceResponse struct {
	Status string `json:"status"` // pending, ready or failed
	URL    string `json:"url,omitempty"`
	Error  string `json:"error,omitempty"`
}

// AuditResponse answers audit. Nothing is recorded here: the list is empty.
type AuditResponse struct {
	Entries []struct{} `json:"entries"`
}

// NoAudit is the empty log.
func NoAudit() AuditResponse { return AuditResponse{Entries: []struct{}{}} }

// BillingResponse answers billing/usage/events. Nothing is billed here: the list is empty.
type BillingResponse struct {
	Data     []struct{}          `json:"data"`
	Sessions map[string]struct{} `json:"sessions"`
}

// NoBilling is the empty bill.
func NoBilling() BillingResponse {
	return BillingResponse{Data: []struct{}{}, Sessions: map[string]struct{}{}}
}

// maxPage bounds the entries of one answer. Clients ask for 1000 at most.
const maxPage = 1000

// ListQuery is what the query of a list asks for.
type ListQuery struct {
	Page       api.Page
	Accessible bool   // also what others have published; else only one's own
	ProjectID  string // "": all
}

// DecodeListQuery reads limit, offset, access_scope and project_id. Without a limit, or with 0, it is the largest.
func DecodeListQuery(q url.Values) (ListQuery, error) {
	out := ListQuery{Page: api.Page{Limit: maxPage}, ProjectID: q.Get("project_id")}
	for name, dst := range map[string]*int{"limit": &out.Page.Limit, "offset": &out.Page.Offset} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		v, err := strconv.Atoi(text)
		if err != nil || v < 0 {
			return out, api.Errorf(api.BadRequest, "%s is %q, wanted an integer from 0", name, clip(text))
		}
		*dst = v
	}
	if out.Page.Limit == 0 || out.Page.Limit > maxPage {
		out.Page.Limit = maxPage
	}
	switch scope := q.Get("access_scope"); scope {
	case "", "owned":
	case "accessible":
		out.Accessible = true
	default:
		return out, api.Errorf(api.BadRequest, "access_scope is %q, wanted \"owned\" or \"accessible\"", clip(scope))
	}
	return out, nil
}
