package interchange

import (
	"context"
	"fmt"
	"io"
	"slices"

	"tinkerlocal/engine/api"
)

// File is a file of an export that is sent away instead of being written to a disk.
type File struct {
	Name  string
	Bytes int64

	write func(ctx context.Context, w io.Writer) error
}

// Write writes the file's bytes to w: the same at every call, as long as the adapter's source is open.
func (f File) Write(ctx context.Context, w io.Writer) error {
	err := f.write(ctx, w)
	if err != nil && ctx.Err() != nil {
		return api.Errorf(api.Cancelled, "%s: %w", f.Name, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return nil
}

// PEFTFiles are the files of the folder that [PlanPEFT] plans, and behind them the empty checkpoint_complete: who has it has all. One
// factor at a time is in memory, or those of one layer's experts. One goroutine uses the files of one call.
func PEFTFiles(a *Adapter, o PEFTOptions) ([]File, error) {
	_, p, err := layPEFT(a, o)
	if err != nil {
		return nil, fmt.Errorf("files of an adapter: %w", err)
	}
	config, err := p.out.ConfigText()
	if err != nil {
		return nil, fmt.Errorf("files of an adapter: %w", err)
	}
	size, err := p.out.WeightsBytes()
	if err != nil {
		return nil, fmt.Errorf("files of an adapter: %w", err)
	}
	return []File{
		{configFile, int64(len(config)), func(_ context.Context, w io.Writer) error {
			_, err := w.Write(config)
			return err
		}},
		{weightsFile, size, func(ctx context.Context, w io.Writer) error {
			nobody := newProgress(WriteOptions{Progress: func(int64, int64) {}}, 0)
			return p.filled(ctx, nobody).WriteWeights(w)
		}},
		{completeFile, 0, func(context.Context, io.Writer) error { return nil }},
	}, nil
}

// ArchiveFiles are the files of the archive that [WriteArchive] writes, each by itself, in their order. One tensor at a time is in memory.
func ArchiveFiles(r api.CheckpointReader, o ArchiveOptions) ([]File, error) {
	p, err := planArchive(r, o)
	if err != nil {
		return nil, fmt.Errorf("files of %v: %w", r.Checkpoint().Path, err)
	}
	files := make([]File, len(p.entries))
	for i := range p.entries {
		e := &p.entries[i]
		files[i] = File{e.name, e.size, func(ctx context.Context, w io.Writer) error {
			return p.writeEntry(ctx, w, e, newProgress(WriteOptions{Progress: func(int64, int64) {}}, 0))
		}}
	}
	return files, nil
}

// ExpertFactors reports whether an adapter has factors of experts.
func (a *Adapter) ExpertFactors() bool { return slices.ContainsFunc(a.Factors, isExperts) }
