package remote

import (
	"context"
	"net/http"

	"tinkerlocal/engine/api"
)

// call answers what needs no session: it is done when it is answered.
func (h *Handler) call(w http.ResponseWriter, r *http.Request) {
	do, ok := calls[r.PathValue("method")]
	if !ok {
		refuse(w, api.Errorf(api.Unsupported, "there is no call %.40q", r.PathValue("method")))
		return
	}
	v, err := do(h.store, r)
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, v)
}

type doCall func(s api.StateStore, r *http.Request) (any, error)

// calls has every call by its name.
var calls = map[string]doCall{
	"info": asked(func(s api.StateStore, ctx context.Context, c pathCall) (api.Checkpoint, error) {
		return s.Info(ctx, c.Path)
	}),
	"list": asked(api.StateStore.List),

	"delete":    changed(func(s api.StateStore, ctx context.Context, c pathCall) error { return s.Delete(ctx, c.Path) }),
	"set-ttl":   changed(func(s api.StateStore, ctx context.Context, c pathCall) error { return s.SetTTL(ctx, c.Path, c.TTL) }),
	"clear-ttl": changed(func(s api.StateStore, ctx context.Context, c pathCall) error { return s.ClearTTL(ctx, c.Path) }),
	"publish":   changed(func(s api.StateStore, ctx context.Context, c pathCall) error { return s.Publish(ctx, c.Path) }),
	"unpublish": changed(func(s api.StateStore, ctx context.Context, c pathCall) error { return s.Unpublish(ctx, c.Path) }),

	"put-run": changed(api.StateStore.PutRun),
	"run":     asked(func(s api.StateStore, ctx context.Context, c runCall) (api.RunRecord, error) { return s.Run(ctx, c.ID) }),
	"runs":    asked(api.StateStore.Runs),

	"delete-expired": asked(func(s api.StateStore, ctx context.Context, _ nothing) ([]api.Path, error) {
		return s.DeleteExpired(ctx)
	}),
	"collect": asked(func(s api.StateStore, ctx context.Context, _ nothing) (api.Collected, error) { return s.Collect(ctx) }),
	"verify": asked(func(s api.StateStore, ctx context.Context, c pathsCall) ([]api.Damage, error) {
		return s.Verify(ctx, c.Paths...)
	}),
}

// asked reads a call's request and does it.
func asked[A, R any](do func(s api.StateStore, ctx context.Context, a A) (R, error)) doCall {
	return func(s api.StateStore, r *http.Request) (any, error) {
		var a A
		if err := readJSON(r.Body, maxCall, &a); err != nil {
			return nil, err
		}
		return do(s, r.Context(), a)
	}
}

// changed is asked for what answers nothing.
func changed[A any](do func(s api.StateStore, ctx context.Context, a A) error) doCall {
	return asked(func(s api.StateStore, ctx context.Context, a A) (nothing, error) { return nothing{}, do(s, ctx, a) })
}
