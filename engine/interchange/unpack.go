package interchange

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
)

// ReadOptions bound what an archive may take.
type ReadOptions struct {
	MaxBytes int64  // of the archive, unpacked; 0: 64 GiB. See LargestArchive
	Temp     string // folder for a stream or a compressed archive, which is unpacked there until Close; "": the system's
}

const (
	maxArchive    = 64 << 30
	maxEntries    = 64
	maxText       = 1 << 20 // of a JSON file
	zstdWindow    = 128 << 20
	roomInterval  = 64 << 20 // how much is written between two looks at the disk
	archiveExtras = 16 << 20 // headers and small files
)

// LargestArchive is the size of the largest archive that can be an adapter on sites: of the largest rank, with moments.
func LargestArchive(sites []lora.Site) int64 {
	n := lora.Params(sites, api.LoraConfig{Rank: api.MaxRank, TrainAttn: true, TrainMLP: true, TrainUnembed: true})
	return 3*4*int64(n) + archiveExtras
}

// OpenArchive opens an archive of this engine or of the hosted service: a tar file, also compressed by gzip or zstd. An archive without
// checkpoint_complete or without the end mark of tar was cut off and is refused, as are links, folders and everything else that is not a plain file.
func OpenArchive(ctx context.Context, path string, o ReadOptions) (*Source, error) {
	s, err := openArchive(ctx, path, o)
	if err != nil && ctx.Err() != nil {
		return nil, api.Errorf(api.Cancelled, "%s: %w", path, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func openArchive(ctx context.Context, path string, o ReadOptions) (*Source, error) {
	st, err := os.Stat(path) // before opening: opening a pipe would wait for its writer
	if err != nil {
		return nil, disk.Error(err)
	}
	if !st.Mode().IsRegular() {
		return nil, api.Errorf(api.BadRequest, "it is not a regular file, wanted an archive")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, disk.Error(err)
	}
	defer f.Close()
	var magic [4]byte
	n, _ := f.ReadAt(magic[:], 0)
	if packing(magic[:n]) != "" {
		return readArchive(ctx, f, o)
	}
	return scan(ctx, path, f, o)
}

// ReadArchive is OpenArchive for a stream. It is kept in a file of its own until Close.
func ReadArchive(ctx context.Context, r io.Reader, o ReadOptions) (*Source, error) {
	s, err := readArchive(ctx, r, o)
	if err != nil && ctx.Err() != nil {
		return nil, api.Errorf(api.Cancelled, "archive: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	return s, nil
}

// packing names the compression of what begins with b.
func packing(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	}
	return ""
}

func readArchive(ctx context.Context, r io.Reader, o ReadOptions) (s *Source, err error) {
	in := bufio.NewReaderSize(r, 1<<18)
	magic, _ := in.Peek(4)
	plain, kind := io.Reader(in), packing(magic)
	switch kind {
	case "gzip":
		plain, err = gzip.NewReader(in)
	case "zstd":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow)); err == nil {
			defer d.Close()
			plain = d
		}
	}
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "%s: %w", kind, err)
	}
	f, err := os.CreateTemp(o.Temp, ".archive-*.tar")
	if err != nil {
		return nil, disk.Error(err)
	}
	remove := func() error { return os.Remove(f.Name()) }
	if err = spool(ctx, f, plain, kind, o); err == nil {
		s, err = scan(ctx, f.Name(), f, o)
	}
	_ = f.Close()
	if err != nil {
		_ = remove()
		return nil, err
	}
	s.closers = append([]func() error{remove}, s.closers...) // last: some systems do not remove what is mapped
	return s, nil
}

// spool copies an archive into f, within limits.
func spool(ctx context.Context, f *os.File, r io.Reader, kind string, o ReadOptions) error {
	limit := o.limit()
	piece := make([]byte, 1<<18)
	for n := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n%roomInterval < int64(len(piece)) {
			if err := disk.Room(f.Name(), roomInterval, disk.Margin); err != nil {
				return err
			}
		}
		k, err := r.Read(piece)
		if n += int64(k); n > limit {
			return api.Errorf(api.BadRequest, "it is more than %d bytes unpacked, which is the limit", limit)
		}
		if _, err := f.Write(piece[:k]); err != nil {
			return disk.Error(err)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && kind != "":
			return api.Errorf(api.BadRequest, "%s: it is damaged or cut off after %d bytes: %w", kind, n, err)
		case err != nil:
			return api.Errorf(api.BadRequest, "it ends after %d bytes: %w", n, err)
		}
	}
}

func (o ReadOptions) limit() int64 {
	if o.MaxBytes > 0 {
		return o.MaxBytes
	}
	return maxArchive
}

// place is where a file lies within an archive.
type place struct{ offset, size int64 }

// scan opens a plain tar file. f is path, at its beginning or not.
func scan(ctx context.Context, path string, f *os.File, o ReadOptions) (*Source, error) {
	at, notes, err := list(f, o.limit())
	if err != nil {
		return nil, err
	}
	for _, name := range []string{completeFile, configFile, weightsFile} {
		if _, ok := at[name]; !ok {
			why := "not an archive of a checkpoint"
			if name == completeFile {
				why = "the archive was cut off, or is not one of a checkpoint; a PEFT folder can be read unpacked"
			}
			return nil, api.Errorf(api.BadRequest, "it has no %s: %s", name, why)
		}
	}
	if _, state := at[stateFile]; state != (at[optimizerFile].size > 0) {
		return nil, api.Errorf(api.BadRequest, "it has one of %s and %s, wanted both or neither", optimizerFile, stateFile)
	}
	text, err := readText(f, configFile, at[configFile])
	if err != nil {
		return nil, err
	}
	s := &Source{Notes: notes}
	err = s.open(path, f, text, at)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// open opens the files of an archive.
func (s *Source) open(path string, f *os.File, config []byte, at map[string]place) error {
	w, err := hf.OpenSection(path, at[weightsFile].offset, at[weightsFile].size)
	if err != nil {
		return fmt.Errorf("%s: %w", weightsFile, err)
	}
	s.closers = append(s.closers, w.Close)
	a, err := hf.NewAdapter(config, w)
	if err == nil {
		err = s.take(a)
	}
	if err != nil || at[optimizerFile].size == 0 {
		return err
	}
	text, err := readText(f, stateFile, at[stateFile])
	if err != nil {
		return err
	}
	if err := s.takeState(text); err != nil {
		return fmt.Errorf("%s: %w", stateFile, err)
	}
	m, err := hf.OpenSection(path, at[optimizerFile].offset, at[optimizerFile].size)
	if err == nil {
		s.closers = append(s.closers, m.Close)
		err = s.takeMoments(m)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", optimizerFile, err)
	}
	return nil
}

// takeState reads training_state.json, which must agree with the adapter.
func (s *Source) takeState(text []byte) error {
	var st trainingState
	if err := json.Unmarshal(text, &st); err != nil {
		return api.Errorf(api.BadRequest, "invalid json: %w", err)
	}
	have, want := st.Lora, s.Lora
	have.Seed = nil
	switch {
	case st.FormatVersion != stateVersion:
		return api.Errorf(api.Unsupported, "format_version is %d, this build reads %d", st.FormatVersion, stateVersion)
	case have != want:
		return api.Errorf(api.BadRequest, "lora_config is %+v, the tensors are those of %+v", have, want)
	case st.Step < 0 || st.Version < 0:
		return api.Errorf(api.BadRequest, "step is %d and version is %d, wanted 0 or more", st.Step, st.Version)
	}
	s.Lora, s.Version, s.Step, s.Optimizer = st.Lora, st.Version, st.Step, true
	s.Plugins, s.Metadata, s.CheckpointMetadata = st.Plugins, st.Metadata, st.Notes
	if st.BaseModel != "" {
		s.BaseModel = st.BaseModel
	}
	return nil
}

// takeMoments reads Adam's moments: two for each factor, shaped like it.
func (s *Source) takeMoments(f *hf.File) error {
	s.moments = map[string]hf.Tensor{}
	for _, t := range f.Tensors {
		prefix, rest, _ := strings.Cut(t.Name, "/")
		if prefix += "/"; prefix != lora.MomentM && prefix != lora.MomentV {
			return api.Errorf(api.BadRequest, "tensor %s: wanted a name that begins with %s or %s", clip(t.Name), lora.MomentM, lora.MomentV)
		}
		name, expert, err := engineName(rest)
		if err != nil {
			return err
		}
		factor := s.factors[name]
		switch {
		case factor == nil || expert >= 0:
			return api.Errorf(api.BadRequest, "tensor %s is a moment of a factor that is not there", clip(t.Name))
		case t.Stored != "F32" || !slices.Equal(t.Shape, factor.shape):
			return api.Errorf(api.BadRequest, "tensor %s is %s%v, wanted F32%v", clip(t.Name), t.Stored, t.Shape, factor.shape)
		case s.moments[prefix+name].Name != "":
			return api.Errorf(api.BadRequest, "tensor %s appears twice, under two names", clip(t.Name))
		}
		if err := finite(clip(t.Name), t.Data); err != nil {
			return err
		}
		s.moments[prefix+name] = t
	}
	if len(s.moments) != 2*len(s.factors) {
		return api.Errorf(api.BadRequest, "there are %d moments of %d factors, wanted two of each", len(s.moments), len(s.factors))
	}
	return nil
}

// list finds the files of a tar archive. It refuses what is not a plain file of the archive's top folder.
func list(f *os.File, limit int64) (at map[string]place, notes []string, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, nil, disk.Error(err)
	}
	at = map[string]place{}
	r := tar.NewReader(f) // reads whole blocks and no further, so the file stands where its contents begin
	total, end := int64(0), int64(0)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, api.Errorf(api.BadRequest, "entry %d: not a tar archive, damaged or cut off: %w", n, err)
		}
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, nil, disk.Error(err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		total += h.Size
		switch {
		case n == maxEntries:
			return nil, nil, api.Errorf(api.BadRequest, "it has more than %d entries", maxEntries)
		case h.Typeflag == tar.TypeDir && (name == "" || name == "."):
			continue // the top folder itself
		case h.Typeflag != tar.TypeReg || isSparse(h):
			return nil, nil, api.Errorf(api.BadRequest, "entry %s is a %s, wanted plain files only", clip(h.Name), entryKind(h))
		case name == "" || strings.ContainsAny(name, "/\\\x00") || name == "..":
			return nil, nil, api.Errorf(api.BadRequest, "entry %s lies elsewhere, wanted files of one folder", clip(h.Name))
		case h.Size < 0 || total < 0 || total > limit:
			return nil, nil, api.Errorf(api.BadRequest, "entry %s: with its %d bytes the files are larger than %d, which is the limit", clip(h.Name), h.Size, limit)
		}
		if _, again := at[name]; again {
			return nil, nil, api.Errorf(api.BadRequest, "entry %s appears twice", clip(h.Name))
		}
		at[name] = place{offset, h.Size}
		end = offset + (h.Size+block-1)/block*block
		if !slices.Contains([]string{configFile, weightsFile, optimizerFile, stateFile, completeFile}, name) {
			notes = append(notes, "file "+clip(name)+" was passed over")
		}
	}
	if stop, err := f.Seek(0, io.SeekCurrent); err != nil || stop < end+block {
		return nil, nil, api.Errorf(api.BadRequest, "it has no end mark: it was cut off after %d bytes", stop)
	}
	return at, notes, nil
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// entryKind says what an entry is.
func entryKind(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeSymlink:
		return "symbolic link to " + clip(h.Linkname)
	case tar.TypeLink:
		return "hard link to " + clip(h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return "device or pipe"
	case tar.TypeDir:
		return "folder"
	}
	if isSparse(h) {
		return "sparse file"
	}
	return fmt.Sprintf("entry of type %q", h.Typeflag)
}

// readText reads a small file of an archive.
func readText(f *os.File, name string, p place) ([]byte, error) {
	if p.size > maxText {
		return nil, api.Errorf(api.BadRequest, "%s has %d bytes, wanted at most %d", name, p.size, maxText)
	}
	text := make([]byte, p.size)
	if _, err := f.ReadAt(text, p.offset); err != nil {
		return nil, api.Errorf(api.BadRequest, "%s: the archive is cut off: %w", name, err)
	}
	return text, nil
}
