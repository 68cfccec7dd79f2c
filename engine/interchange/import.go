package interchange

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// ImportOptions say how an adapter becomes a checkpoint.
type ImportOptions struct {
	Save api.SaveOptions
	Seed int64 // of the factors that the source lacks: see [Source.Fit]
}

// Import brings an adapter into a store. c says where to: Path with its kind, and Owner; BaseModel, if it is empty, is the source's. sites are those of
// the base model. Under a path of the kind [api.KindState] an archive's training state is restored, moments and step, bit for bit;
// without one the checkpoint has weights only.
//
// The checkpoint is read again and compared before it is said to be there. After an error nothing is in the store that was not there before, unless
// what was there had to be overwritten for this comparison to fail.
func Import(ctx context.Context, src *Source, sites []lora.Site, st api.Store, c api.Checkpoint, o ImportOptions) (api.Checkpoint, error) {
	done, err := importTo(ctx, src, sites, st, c, o)
	if err != nil && ctx.Err() != nil {
		return api.Checkpoint{}, api.Errorf(api.Cancelled, "import %v: %w", c.Path, context.Cause(ctx))
	}
	if err != nil {
		return api.Checkpoint{}, fmt.Errorf("import %v: %w", c.Path, err)
	}
	return done, nil
}

func importTo(ctx context.Context, src *Source, sites []lora.Site, st api.Store, c api.Checkpoint, o ImportOptions) (api.Checkpoint, error) {
	a, err := src.Fit(sites, o.Seed)
	if err != nil {
		return c, err
	}
	if c.BaseModel == "" {
		c.BaseModel = a.BaseModel
	}
	c.Lora, c.Version, c.Plugins = a.Lora, src.Version, src.Plugins
	c.Optimizer = src.Optimizer && c.Path.Kind == api.KindState
	c.Step = 0
	if src.Optimizer {
		c.Step = src.Step
	}
	if c.Lora.Seed == nil && len(src.factors) < len(a.Factors) {
		c.Lora.Seed = &o.Seed
	}
	tensors := slices.Clone(a.Factors)
	if c.Optimizer {
		for _, prefix := range []string{lora.MomentM, lora.MomentV} {
			for _, t := range a.Factors {
				t.Name = prefix + t.Name
				tensors = append(tensors, t)
			}
		}
	}
	c.Bytes = 0
	for _, t := range tensors {
		c.Bytes += 4 * int64(length(t))
	}
	read := func(t api.TensorInfo) ([]byte, error) {
		if isMoment(t.Name) {
			return src.bytes(t)
		}
		return a.bytes(ctx, t)
	}
	if o.Save.UserMetadata == nil {
		o.Save.UserMetadata = src.CheckpointMetadata
	}
	w, err := st.Create(ctx, c, o.Save)
	if err != nil {
		return c, err
	}
	defer w.Abort()
	for _, t := range tensors {
		data, err := read(t)
		if err == nil {
			err = w.Tensor(ctx, t, data)
		}
		if err != nil {
			return c, err
		}
	}
	made, err := w.Commit(ctx)
	if err != nil {
		return c, err
	}
	if err := compareWith(ctx, st, made.Path, tensors, read); err != nil {
		// A cancelled import has to go as well.
		if gone := st.Delete(context.WithoutCancel(ctx), made.Path); gone != nil {
			return made, fmt.Errorf("reading it again: %w; it could not be deleted: %w", err, gone)
		}
		return made, fmt.Errorf("reading it again: %w", err)
	}
	return made, nil
}

// compareWith reads a checkpoint and compares every byte.
func compareWith(ctx context.Context, st api.Store, p api.Path, tensors []api.TensorInfo, read func(api.TensorInfo) ([]byte, error)) error {
	r, err := st.Open(ctx, p)
	if err != nil {
		return err
	}
	defer r.Close()
	if have := len(r.Tensors()); have != len(tensors) {
		return api.Errorf(api.DataLoss, "it has %d tensors, %d were written", have, len(tensors))
	}
	for _, t := range tensors {
		want, err := read(t)
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		if err := r.Read(ctx, t.Name, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return api.Errorf(api.DataLoss, "tensor %s is not what was written", t.Name)
		}
	}
	return nil
}
