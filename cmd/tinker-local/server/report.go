package server

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// Report is what a server has and does at one moment: what its engine tells, and what only the server knows. Lists are never nil
// and in a fixed order. An owner's report has what is theirs alone.
type Report struct {
	Server ServerReport `json:"server"`
	api.Status
	Sessions []SessionReport `json:"sessions"` // in place of the engine's, the oldest first
	Samplers []SamplerReport `json:"samplers"`
	Products []ProductReport `json:"products"` // of the loaded base models, by name; of the whole server only
}

// ServerReport is about the server itself.
type ServerReport struct {
	Version       string    `json:"version"`
	PID           int       `json:"pid"`
	Started       time.Time `json:"started"`
	UptimeSeconds int64     `json:"uptime_seconds"`
	Ready         bool      `json:"ready"`    // the models that were asked for are loaded
	Stopping      bool      `json:"stopping"` // it takes no more work

	Owners          int   `json:"owners"`           // that have something open
	Connections     int64 `json:"connections"`      // open, idle ones too
	ConnectionLimit int   `json:"connection_limit"` //
	Calls           int64 `json:"calls"`            // requests that are being answered, waiting polls and programs among them
	Programs        int   `json:"programs"`         // of this machine's command line that work through the store

	Open      int   `json:"open_requests"` // accepted work that has not ended
	Kept      int   `json:"kept_results"`  // of work that has ended, until they were fetched and a while longer
	HeldBytes int64 `json:"held_bytes"`    // by both
	HeldLimit int64 `json:"held_limit_bytes"`
}

// SessionReport is an open session.
type SessionReport struct {
	api.SessionStatus
	SDK       string    `json:"sdk_version,omitempty"` // "": it is the server's own, or was opened again after a restart
	Name      string    `json:"name,omitempty"`        // the client's
	LastHeard time.Time `json:"last_heard,omitzero"`
	Open      int       `json:"open_requests"`
	Kept      int       `json:"kept_results"`
}

// SamplerReport is an open sampling session.
type SamplerReport struct {
	ID        string `json:"sampler_id"`
	Session   string `json:"session_id"`
	Owner     string `json:"owner"`
	BaseModel string `json:"base_model"`
	Path      string `json:"model_path,omitempty"` // "": the bare base, or a copy of a run's weights
	State     string `json:"state"`                // loading, ready, or failed
}

// ProductReport counts the multiply-adds with the weights of a base model since it was loaded: by passes of training, by their
// gradients, by forwards that were computed again for want of memory, and by sampling.
type ProductReport struct {
	BaseModel string `json:"base_model"`
	Forward   int64  `json:"forward"`
	Backward  int64  `json:"backward"`
	Recompute int64  `json:"recompute"`
	Sample    int64  `json:"sample"`
}

// status tells what the server has and does: all of it to its own command line, to others what is theirs.
func (s *Server) status(c *call) (any, error) {
	r := s.report()
	if !c.admin {
		s.narrow(&r, c.owner)
	}
	return r, nil
}

// report is everything.
func (s *Server) report() Report {
	r := Report{Status: s.engine.Status(), Samplers: []SamplerReport{}, Products: s.products()}
	now := s.opt.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Server = ServerReport{
		Version: s.opt.Version, PID: os.Getpid(), Started: s.started, UptimeSeconds: int64(now.Sub(s.started).Seconds()),
		Ready: s.ready.Load(), Stopping: s.stopped,
		Connections: s.connections.Load(), ConnectionLimit: s.lim.Connections, Calls: s.calls.all(),
		HeldBytes: s.held.all(), HeldLimit: s.lim.Held,
	}
	if s.remote != nil {
		r.Server.Programs = s.remote.Sessions()
	}
	for o := range s.open {
		s.settle(o)
	}
	open, kept := map[*session]int{}, map[*session]int{}
	for _, o := range s.ops {
		if o.settled {
			kept[o.session]++
			r.Server.Kept++
		} else {
			open[o.session]++
			r.Server.Open++
		}
	}
	owners := map[string]bool{}
	r.Sessions = make([]SessionReport, len(r.Status.Sessions))
	for i, e := range r.Status.Sessions {
		out := SessionReport{SessionStatus: e}
		if sess, ok := s.sessions[e.ID]; ok {
			owners[e.Owner] = true
			out.SDK, out.Name, out.LastHeard = sess.sdk, sess.name, sess.seen
			out.Open, out.Kept = open[sess], kept[sess]
		}
		r.Sessions[i] = out
	}
	r.Server.Owners = len(owners)
	for _, p := range s.samplers {
		r.Samplers = append(r.Samplers, p.report())
	}
	slices.SortFunc(r.Samplers, func(a, b SamplerReport) int { return cmp.Compare(a.ID, b.ID) })
	return r
}

func (p *sampler) report() SamplerReport {
	out := SamplerReport{ID: p.id, Session: p.session.id, Owner: p.session.owner, BaseModel: p.base, Path: p.path, State: "loading"}
	if p.made.State() == engine.Ended {
		out.State = "ready"
		if _, err := p.made.Wait(context.Background()); err != nil {
			out.State = "failed"
		}
	}
	return out
}

func (s *Server) products() []ProductReport {
	out := []ProductReport{}
	for name, c := range s.engine.Counters() {
		w := c.Total()
		out = append(out, ProductReport{name, w.Forward, w.Backward, w.Recompute, w.Sample})
	}
	slices.SortFunc(out, func(a, b ProductReport) int { return cmp.Compare(a.BaseModel, b.BaseModel) })
	return out
}

// narrow leaves what is owner's, and what everybody may know.
func (s *Server) narrow(r *Report, owner string) {
	r.Sessions = slices.DeleteFunc(r.Sessions, func(x SessionReport) bool { return x.Owner != owner })
	r.Runs = slices.DeleteFunc(r.Runs, func(x api.RunStatus) bool { return x.Owner != owner })
	r.Samplers = slices.DeleteFunc(r.Samplers, func(x SamplerReport) bool { return x.Owner != owner })
	all := r.Server
	r.Server = ServerReport{
		Version: all.Version, Started: all.Started, UptimeSeconds: all.UptimeSeconds, Ready: all.Ready, Stopping: all.Stopping,
		Owners: min(len(r.Sessions), 1), Calls: s.calls.of(owner), HeldBytes: s.held.of(owner), HeldLimit: all.HeldLimit,
	}
	for _, x := range r.Sessions {
		r.Server.Open += x.Open
		r.Server.Kept += x.Kept
	}
	bases := r.Bases
	r.Status = api.Status{
		State: r.State, Error: r.Error, Device: r.Device, Bases: []api.BaseStatus{}, Sessions: nil, Runs: r.Runs,
		SampleRequests: int(s.samples.of(owner)), SampleRequestLimit: r.SampleRequestLimit, RunLimit: r.RunLimit,
	}
	r.Products = []ProductReport{}
	for _, b := range bases {
		own := api.BaseStatus{Name: b.Name, Params: b.Params, Bytes: b.Bytes}
		for _, x := range r.Runs {
			if x.BaseModel == b.Name {
				own.Runs++
			}
		}
		for _, x := range r.Samplers {
			if x.BaseModel == b.Name {
				own.Samplers++
			}
		}
		if own.Runs+own.Samplers > 0 {
			r.Bases = append(r.Bases, own)
		}
	}
}

// countConnection keeps count of the open connections.
func (s *Server) countConnection(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.connections.Add(-1)
	}
}
