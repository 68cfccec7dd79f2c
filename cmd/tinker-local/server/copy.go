package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// copyWeights copies a checkpoint that the caller may read into a run of the caller's own, which holds nothing else and cannot be trained
// on. The store keeps equal contents once.
func (s *Server) copyWeights(c *call) (any, error) {
	var r wire.CopyWeightsRequest
	if err := s.read(c, &r); err != nil {
		return nil, err
	}
	reader, err := s.reader(c, cmp.Or(r.AccessToken, c.Header.Get("X-Tinker-Weights-Access-Token")))
	if err != nil {
		return nil, err
	}
	from, err := s.readable(c.Context(), reader, r.Path)
	if err != nil {
		return nil, err
	}
	st, err := s.store()
	if err != nil {
		return nil, err
	}
	if err := s.roomToDownload(c); err != nil { // as much work, and a tensor in memory
		return nil, err
	}
	to := api.Path{Run: s.copyRun(c, from.Path), Kind: from.Path.Kind, Name: from.Path.Name}
	if r.SessionID != "" {
		sess, err := s.session(c, r.SessionID)
		if err != nil {
			return nil, err
		}
		to.Run = runID(sess.id, r.ModelSeqID)
	}
	// A repeat finds what the first has made, also when that was quicker just now.
	there := func() bool {
		k, err := st.Info(c.Context(), to)
		return err == nil && k.Owner == c.owner && k.SHA256 == from.SHA256
	}
	if there() {
		return wire.Copied(to), nil
	}
	if rec, err := st.Run(c.Context(), to.Run); err == nil && rec.UserMetadata[copiedFrom] != from.Path.String() {
		return nil, api.Errorf(api.BadRequest, "run %s is there already: a copy needs a number that no run of the session has", to.Run)
	}
	if err := copyCheckpoint(c.Context(), st, from, to, c.owner, r.TTL()); err != nil {
		if there() {
			return wire.Copied(to), nil
		}
		return nil, err
	}
	if r.SessionID == "" {
		s.mu.Lock()
		s.remember(about{id: sessionOf(to.Run), owner: c.owner, created: s.opt.Now(), project: r.ProjectID})
		s.mu.Unlock()
	}
	rec := api.RunRecord{
		ID: to.Run, Owner: c.owner, BaseModel: from.BaseModel, Lora: from.Lora, LastRequest: s.opt.Now(),
		UserMetadata: map[string]string{copiedFrom: from.Path.String()},
	}
	return wire.Copied(to), st.PutRun(c.Context(), rec)
}

// copiedFrom is the note of a copy's run about where it comes from.
const copiedFrom = "copied_from"

// copyRun is the id of the run for a copy: the same for the repeats of a request, which its client marks with a key.
func (s *Server) copyRun(c *call, from api.Path) string {
	random := hex.EncodeToString(s.mac("copy", c.owner, from.String(), cmp.Or(c.Header.Get("X-Idempotency-Key"), rand.Text()))[:8])
	return runID(random+"-"+s.sessionMAC(random, c.owner), 0)
}

// copyCheckpoint writes the tensors of one checkpoint as another one of owner's.
func copyCheckpoint(ctx context.Context, st api.Store, from api.Checkpoint, to api.Path, owner string, ttl time.Duration) error {
	r, err := st.Open(ctx, from.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	k := r.Checkpoint()
	k.Path, k.Owner, k.Public = to, owner, false
	w, err := st.Create(ctx, k, api.SaveOptions{TTL: ttl, UserMetadata: k.UserMetadata})
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, t := range r.Tensors() {
		n, err := t.Bytes()
		if err != nil {
			return err
		}
		data := make([]byte, n)
		if err := r.Read(ctx, t.Name, data); err != nil {
			return err
		}
		if err := w.Tensor(ctx, t, data); err != nil {
			return err
		}
	}
	_, err = w.Commit(ctx)
	return err
}
