package hub

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"tinkerlocal/engine/api"
)

// getter brings the files of one pull into the staging folder.
type getter struct {
	c            *Client
	name, commit string
	folder       *folder
	old          *record // of the model that is there; may be nil
	downloaded   atomic.Int64
}

// spareBytes is left free on the disk.
const spareBytes = 32 << 20

// checkSpace refuses a download that the disk cannot hold, and clears away parts that it has no use for.
func (g *getter) checkSpace(files []*File, total int64) error {
	wanted := map[string]bool{}
	var there int64
	for _, x := range files {
		wanted[x.id()] = true
		for _, path := range []string{g.folder.blob(x), g.folder.blob(x) + ".part"} {
			if st, err := os.Lstat(path); err == nil && x.Size >= 0 {
				there += min(st.Size(), x.Size)
			}
		}
	}
	entries, err := os.ReadDir(g.folder.staging)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".part"), ".etag")
		if !wanted[id] { // of another revision
			_ = os.RemoveAll(filepath.Join(g.folder.staging, e.Name()))
		}
	}
	g.c.tell(Event{Kind: Planned, Done: there, Size: total})
	need := total - there
	free, err := g.c.free(g.folder.staging)
	if err == nil && free < need+spareBytes {
		return api.Errorf(api.BadRequest, "%s has %s free, wanted %s for what is still to be downloaded and %s to spare",
			filepath.Dir(g.folder.dir), bytesText(free), bytesText(need), bytesText(spareBytes))
	}
	return nil
}

// all gets files, several at a time. The first failure ends the others; what they have is kept.
func (g *getter) all(ctx context.Context, files []*File) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan *File)
	var wg sync.WaitGroup
	for range min(g.c.limits.Parallel, len(files)) {
		wg.Go(func() {
			for x := range queue {
				if err := g.get(ctx, x); err != nil {
					cancel(err) // the first one counts
				}
			}
		})
	}
	queued := map[string]bool{}
	for _, x := range files {
		if queued[x.id()] { // the same contents under another name
			continue
		}
		queued[x.id()] = true
		select {
		case queue <- x:
		case <-ctx.Done():
		}
	}
	close(queue)
	wg.Wait()
	return context.Cause(ctx)
}

// get makes sure that a file is in the staging folder, whole and verified.
func (g *getter) get(ctx context.Context, x *File) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if freshFile(g.folder.blob(x), x.Size) || g.folder.adopt(g.old, x) {
		g.c.tell(Event{Kind: Completed, File: x.Path, Done: x.Size, Size: x.Size})
		return nil
	}
	for again := false; ; again = true {
		joined, err := g.download(ctx, x)
		var bad *checksumError
		if errors.As(err, &bad) {
			if joined && !again { // the bytes may be of several versions: once more, from nothing
				g.c.tell(Event{Kind: Retrying, File: x.Path, Err: err})
				continue
			}
			return api.Errorf(api.BadRequest, "%w", err)
		}
		return diskError(filepath.Dir(g.folder.dir), err, g.c.free)
	}
}

// download fetches a file, from where its part ends. joined reports that its bytes are of several answers.
func (g *getter) download(ctx context.Context, x *File) (joined bool, err error) {
	p, err := openPart(g.folder.blob(x), x)
	if err != nil {
		return false, err
	}
	defer p.close()
	p.joined = p.have > 0
	g.c.tell(Event{Kind: Advanced, File: x.Path, Done: p.have, Size: x.Size})
	err = g.c.attempts(ctx, x.Path, func() (bool, error) {
		before := p.have
		err := g.fetch(ctx, x, p)
		return p.have-before >= 1<<20, err
	})
	if err == nil {
		err = p.finish()
	}
	if err == nil {
		g.c.tell(Event{Kind: Completed, File: x.Path, Done: p.have, Size: p.have})
	}
	return p.joined, err
}

// resolve is the address of a file of a commit.
func (c *Client) resolve(name, commit, path string) *url.URL {
	parts := []string{name, "resolve", commit}
	for part := range strings.SplitSeq(path, "/") {
		parts = append(parts, url.PathEscape(part))
	}
	return c.settings.Endpoint.JoinPath(parts...)
}

// fetch is one attempt to bring a part to its end.
func (g *getter) fetch(ctx context.Context, x *File, p *part) error {
	if p.whole() {
		return nil
	}
	ctx, watch := g.c.watch(ctx)
	defer watch.stop()
	header := http.Header{"Accept-Encoding": {"identity"}}
	if p.have > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(p.have, 10)+"-")
		if p.etag != "" {
			header.Set("If-Range", p.etag)
		}
	}
	u := g.c.resolve(g.name, g.commit, x.Path)
	resp, first, err := g.c.do(ctx, http.MethodGet, u, header, place{g.name, g.commit, x.Path})
	if errors.Is(err, errRange) {
		if p.have == 0 {
			return api.Errorf(api.BadRequest, "%s: %s answers 416 to a request for the whole file", x.Path, u.Host)
		}
		if err := p.reset(); err != nil {
			return err
		}
		return &retryError{err: api.Errorf(api.BadRequest, "%s: the server has nothing at the end of the part; it is begun anew", x.Path)}
	}
	if err != nil {
		return watch.explain(u, err)
	}
	defer resp.Body.Close()
	if err := x.agree(g.commit, first); err != nil {
		return err
	}
	if err := p.begin(resp); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for body := watch.reader(resp.Body); ; {
		n, err := body.Read(buf)
		if n > 0 {
			if err := p.append(buf[:n], g.c.write); err != nil {
				return err
			}
			g.downloaded.Add(int64(n))
			g.c.tell(Event{Kind: Advanced, File: x.Path, Done: p.have, Size: p.size})
		}
		if err == io.EOF {
			return p.end(resp.Request.URL.Host)
		}
		if err != nil {
			return watch.explain(resp.Request.URL, transferError(resp.Request.URL, err))
		}
	}
}

// agree compares what the hub says with a file against what its listing said.
func (x *File) agree(commit string, h http.Header) error {
	if got := h.Get("X-Repo-Commit"); got != "" && got != commit {
		return api.Errorf(api.BadRequest, "%s: the server answers with the file of commit %q, wanted %s", x.Path, clip(got), commit)
	}
	if got := h.Get("X-Linked-Size"); got != "" && x.Size >= 0 && got != strconv.FormatInt(x.Size, 10) {
		return api.Errorf(api.BadRequest, "%s: the server says it has %q bytes, wanted %d as listed", x.Path, clip(got), x.Size)
	}
	if got := plainETag(h.Get("X-Linked-Etag")); x.SHA256 != "" && sha256Text.MatchString(got) && got != x.SHA256 {
		return api.Errorf(api.BadRequest, "%s: the server says its sha256 is %s, wanted %s as listed", x.Path, got, x.SHA256)
	}
	return nil
}

// head asks for the size and the checksum that a listing did not give.
func (c *Client) head(ctx context.Context, name, commit string, x *File) error {
	u := c.resolve(name, commit, x.Path)
	return c.attempts(ctx, x.Path, func() (bool, error) {
		resp, first, err := c.do(ctx, http.MethodHead, u, http.Header{"Accept-Encoding": {"identity"}}, place{name, commit, x.Path})
		if err != nil {
			return false, err
		}
		resp.Body.Close()
		if x.Size < 0 {
			x.Size = resp.ContentLength
			if linked := first.Get("X-Linked-Size"); linked != "" {
				if x.Size, err = strconv.ParseInt(linked, 10, 64); err != nil || x.Size < 0 {
					return false, api.Errorf(api.BadRequest, "%s: the server says it has %q bytes", x.Path, clip(linked))
				}
			}
			if x.Size > maxFileBytes {
				return false, api.Errorf(api.BadRequest, "%s: the server says that it has %d bytes, wanted at most %d", x.Path, x.Size, int64(maxFileBytes))
			}
		}
		if x.sum() == "" {
			linked, plain := plainETag(first.Get("X-Linked-Etag")), plainETag(first.Get("ETag"))
			switch {
			case sha256Text.MatchString(linked):
				x.SHA256 = linked
			case linked == "" && sha1Text.MatchString(plain) && first.Get("X-Repo-Commit") == commit: // only a hub's own tags are checksums
				x.GitSHA1 = plain
			}
		}
		return false, nil
	})
}

// plainETag is the text of an entity tag.
func plainETag(tag string) string {
	return strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`)
}
