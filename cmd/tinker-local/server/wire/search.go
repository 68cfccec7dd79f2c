package wire

import (
	"slices"
	"time"

	"tinkerlocal/engine/api"
)

// The bodies of this file are those of clients since 0.38.

// FinishSessionRequest ends a session for good.
type FinishSessionRequest struct {
	Reason struct {
		Type string `json:"type"`
	} `json:"reason"`
	Detail string `json:"detail"`
}

// finishReasons are why a client ends a session.
var finishReasons = []string{"success", "errored", "interrupted"}

func (*FinishSessionRequest) name() string { return "finish" }

func (r *FinishSessionRequest) check() error {
	if !slices.Contains(finishReasons, r.Reason.Type) {
		return api.Errorf(api.BadRequest, "reason.type is %q, wanted %q, %q or %q", clip(r.Reason.Type), finishReasons[0], finishReasons[1], finishReasons[2])
	}
	return nil
}

// Finish is how the session ended.
func (r *FinishSessionRequest) Finish() *SessionFinish {
	return &SessionFinish{Reason: r.Reason.Type, Detail: r.Detail}
}

// SessionFinish is how a client has ended a session: "success", "errored" or "interrupted".
type SessionFinish struct {
	Reason, Detail string
}

// Status is the wire's form.
func (f *SessionFinish) Status() *SessionStatus {
	return &SessionStatus{Type: statusFinished, Reason: &sessionReason{f.Reason}, Detail: f.Detail}
}

// SessionStatus says whether a session is open, or how it ended.
type SessionStatus struct {
	Type   string         `json:"type"`
	Reason *sessionReason `json:"reason,omitempty"`
	Detail string         `json:"detail,omitempty"`
}

type sessionReason struct {
	Type string `json:"type"`
}

// The states of a session. Those of the last two are never met here: no session is cancelled or failed by the server.
const (
	statusActive    = "active"
	statusFinished  = "client_finished"
	statusCancelled = "cancelled"
	statusFailed    = "failed"
)

// SessionActive is the status of a session that is open.
func SessionActive() *SessionStatus { return &SessionStatus{Type: statusActive} }

// SessionSearchRequest asks for sessions, the newest first.
type SessionSearchRequest struct {
	SessionID    string               `json:"session_id"`
	ProjectIDs   []string             `json:"project_ids"`   // nil: all
	UserMetadata texts                `json:"user_metadata"` // all pairs must be there
	DisplayName  string               `json:"display_name"`  // its words must be in the name; with SessionID, one of both has to match
	Owner        SearchOwner          `json:"owner"`
	Statuses     []SessionStatusQuery `json:"statuses"` // nil: all
	Limit        *int                 `json:"limit"`
	Cursor       *SessionCursor       `json:"cursor"`
}

// SearchOwner says whose sessions: "own" (also when it is empty), "accessible", or "user" with names.
type SearchOwner struct {
	Type string   `json:"type"`
	URNs []string `json:"owner_urns"`
}

// Matches says whether an owner is meant. The caller sees to it that it is one whose sessions may be seen.
func (o SearchOwner) Matches(urn string) bool {
	return o.Type != "user" || slices.Contains(o.URNs, urn)
}

// SessionStatusQuery matches a status.
type SessionStatusQuery struct {
	Type    string   `json:"type"`
	Reasons []string `json:"reasons"` // of those that are finished; nil: all
}

// Matches says whether a session's status is wanted; nil is that of one of which nothing is known.
func (q SessionStatusQuery) Matches(s *SessionStatus) bool {
	return s != nil && q.Type == s.Type && (q.Reasons == nil || s.Reason != nil && slices.Contains(q.Reasons, s.Reason.Type))
}

// SessionCursor is the last entry of the page before.
type SessionCursor struct {
	CreatedAt time.Time `json:"last_created_at"`
	SessionID string    `json:"last_session_id"`
}

const defaultSearch, maxSearch = 50, 200

func (*SessionSearchRequest) name() string { return "sessions/search" }

func (r *SessionSearchRequest) check() error {
	if n := r.PageLimit(); n < 1 || n > maxSearch {
		return api.Errorf(api.BadRequest, "limit is %d, wanted 1 to %d", n, maxSearch)
	}
	switch r.Owner.Type {
	case "", "own", "accessible", "user":
	default:
		return api.Errorf(api.BadRequest, "owner.type is %q, wanted \"own\", \"accessible\" or \"user\"", clip(r.Owner.Type))
	}
	for _, q := range r.Statuses {
		switch q.Type {
		case statusActive, statusFinished, statusCancelled, statusFailed:
		default:
			return api.Errorf(api.BadRequest, "statuses has the type %q, wanted %q, %q, %q or %q", clip(q.Type), statusActive, statusFinished, statusCancelled, statusFailed)
		}
	}
	return nil
}

// PageLimit is how many sessions are wanted at most.
func (r *SessionSearchRequest) PageLimit() int {
	n := defaultSearch
	set(&n, r.Limit)
	return n
}

// SessionSummary is a session of a search.
type SessionSummary struct {
	SessionID    string            `json:"session_id"`
	CreatedAt    time.Time         `json:"created_at"`
	Owner        string            `json:"owner"`
	ProjectID    string            `json:"project_id"`
	Status       *SessionStatus    `json:"status,omitempty"`
	Checkpoints  int               `json:"checkpoints_count"`
	DisplayName  string            `json:"display_name,omitempty"`
	UserMetadata map[string]string `json:"user_metadata,omitempty"`
	StoredBytes  int64             `json:"checkpoint_storage_bytes"`
}

// SessionSearchResponse is a page of a search.
type SessionSearchResponse struct {
	Sessions []SessionSummary `json:"sessions"`
	Next     *SessionCursor   `json:"next_cursor,omitempty"` // nil: there are no more
}

// StorageUsage is what the checkpoints of one project take.
type StorageUsage struct {
	ProjectID string  `json:"project_id,omitempty"`
	UserURN   string  `json:"org_user_urn"`
	UserName  string  `json:"user_name"`
	Count     int     `json:"checkpoint_count"`
	Bytes     int64   `json:"size_bytes"`
	Gigabytes float64 `json:"size_gigabytes"` // of 1e9 bytes
}

// StorageUsageOf is what the checkpoints of a project take.
func StorageUsageOf(project, urn, user string, count int, bytes int64) StorageUsage {
	return StorageUsage{project, urn, user, count, bytes, float64(bytes) / 1e9}
}

// StorageUsageResponse answers billing/usage/checkpoints/current. There are no rates: nothing is billed here.
type StorageUsageResponse struct {
	Data []StorageUsage `json:"data"`
}
