package wire

import (
	"time"

	"tinkerlocal/engine/api"
)

// CopyWeightsRequest copies a checkpoint, since 0.38: into a new run of a session, or into a run of its own in a project.
type CopyWeightsRequest struct {
	SessionID   string   `json:"session_id"`
	ModelSeqID  int64    `json:"model_seq_id"` // of the run, with SessionID
	ProjectID   string   `json:"destination_project_id"`
	SourcePath  string   `json:"source_path"`
	Path        api.Path `json:"-"` // SourcePath, read
	TTLSeconds  *int64   `json:"ttl_seconds"`
	AccessToken string   `json:"weights_access_token"`
}

func (*CopyWeightsRequest) name() string { return "copy_weights" }

func (r *CopyWeightsRequest) check() (err error) {
	if r.Path, err = api.ParsePath(r.SourcePath); err != nil {
		return err
	}
	if err := sequence("model_seq_id", r.ModelSeqID, 0); err != nil {
		return err
	}
	return checkTTL(r.TTLSeconds)
}

// TTL is how long the copy lives; 0: for ever. That of the original plays no part.
func (r *CopyWeightsRequest) TTL() time.Duration { return ttl(r.TTLSeconds) }

// CopyWeightsResponse answers copy_weights at once.
type CopyWeightsResponse struct {
	TinkerPath api.Path `json:"tinker_path"`
}

// Copied is the answer when the copy is there.
func Copied(to api.Path) CopyWeightsResponse { return CopyWeightsResponse{to} }
