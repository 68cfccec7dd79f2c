package server

import (
	"context"
	"io"
	"slices"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/interchange"
)

// saveExternal saves weights for other programs.
func (s *Server) saveExternal(c *call) (any, error) {
	var r wire.SaveWeightsExternalRequest
	o, err := s.readOperation(c, &r)
	if err != nil {
		return nil, err
	}
	return s.train(c, o, func(p engine.Place) (*op, error) {
		f, err := p.SaveWeightsExternal(r.Name, r.Options())
		if err != nil {
			return nil, err
		}
		return newOp(f, nil, asJSON(func(k api.Checkpoint) any { return wire.ExternalSaved(k) })), nil
	})
}

// externalLinks gives out a link for every file of weights for other programs, which works without a key.
func (s *Server) externalLinks(c *call) (any, error) {
	p, err := pathOf(c)
	if err != nil {
		return nil, err
	}
	if p.Kind != api.KindExternal {
		return nil, api.Errorf(api.BadRequest, "%v is of another kind, wanted %s: only save_weights_external makes files for other programs", p, api.KindExternal)
	}
	k, err := s.readable(c.Context(), c.owner, p)
	if err != nil {
		return nil, err
	}
	base, err := s.base(c)
	if err != nil {
		return nil, err
	}
	r, files, err := s.files(c.Context(), k.Path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	expires := s.linkLife()
	out := wire.ExternalURLsResponse{URLs: map[string]string{}, Expires: expires}
	for _, f := range files {
		out.URLs[f.Name] = s.link(base, download{path: k.Path, file: f.Name, expires: expires})
	}
	return out, nil
}

// externalFile sends a file of weights for other programs to whoever has a link.
func (s *Server) externalFile(c *call) (any, error) {
	name := c.PathValue("file")
	d, err := s.linked(c, name)
	if err != nil {
		return nil, err
	}
	p := d.path
	r, files, err := s.files(c.Context(), p)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(files, func(f interchange.File) bool { return f.Name == name })
	if i < 0 {
		r.Close()
		return nil, api.Errorf(api.NotFound, "%v has no file %q", p, clipped(name))
	}
	return stream{
		kind: "application/octet-stream", name: name, bytes: files[i].Bytes, close: r.Close,
		write: func(ctx context.Context, w io.Writer) error { return files[i].Write(ctx, w) },
	}, nil
}

// files are those of a checkpoint for other programs: a PEFT folder, or, of a model with experts, the files of an archive, because the
// official tools build PEFT folders of those from that form alone. Close the reader.
func (s *Server) files(ctx context.Context, p api.Path) (api.CheckpointReader, []interchange.File, error) {
	st, err := s.store()
	if err != nil {
		return nil, nil, err
	}
	r, err := st.Open(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	var files []interchange.File
	if a := interchange.FromCheckpoint(r); a.ExpertFactors() {
		files, err = interchange.ArchiveFiles(r, interchange.ArchiveOptions{})
	} else {
		files, err = interchange.PEFTFiles(a, interchange.PEFTOptions{})
	}
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, files, nil
}
