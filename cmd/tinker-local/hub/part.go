package hub

import (
	"context"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tinkerlocal/engine/api"
)

// maxUnsized bounds a file of which the server says no size.
const maxUnsized = 1 << 30

// part is the beginning of a file on disk.
type part struct {
	x      *File
	blob   string // where the whole file goes
	file   *os.File
	have   int64
	size   int64     // of the whole; -1: not known
	ended  bool      // a file without a size has ended
	joined bool      // it has bytes of several answers
	etag   string    // strong, with its quotes; "": none
	digest hash.Hash // of the first have bytes; nil: computed at the end
}

// openPart opens or makes the part of a file. What another version left in it is thrown away.
func openPart(blob string, x *File) (_ *part, err error) {
	p := &part{x: x, blob: blob, size: x.Size, digest: x.digest()}
	if p.file, err = os.OpenFile(blob+".part", os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.have, err = p.file.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	if tag, err := os.ReadFile(p.etagPath()); err == nil && len(tag) < 1<<10 {
		p.etag = strongETag(string(tag))
	}
	if tooLong := p.size >= 0 && p.have > p.size; tooLong || p.have > 0 && p.etag == "" && x.sum() == "" {
		return p, p.reset()
	}
	if p.digest != nil && p.have > 0 {
		if _, err = p.file.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		if _, err = io.CopyN(p.digest, p.file, p.have); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *part) etagPath() string { return p.blob + ".etag" }

func (p *part) close() { _ = p.file.Close() }

// whole reports that no byte is missing.
func (p *part) whole() bool { return p.ended || p.size >= 0 && p.have == p.size }

// reset empties the part.
func (p *part) reset() error {
	p.have, p.etag, p.digest, p.ended, p.joined = 0, "", p.x.digest(), false, false
	_ = os.Remove(p.etagPath())
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err := p.file.Seek(0, io.SeekStart)
	return err
}

// begin checks that an answer goes on where the part ends, or empties the part for an answer that is the
// whole file.
func (p *part) begin(resp *http.Response) error {
	host := resp.Request.URL.Host
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return api.Errorf(api.BadRequest, "%s: %s sends it with Content-Encoding %q, wanted none", p.x.Path, host, clip(e))
	}
	tag := strongETag(resp.Header.Get("ETag"))
	total := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		from, all, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || from != p.have || p.have == 0 || p.etag != "" && tag != "" && tag != p.etag {
			asked := p.have
			if err := p.reset(); err != nil {
				return err
			}
			return &retryError{err: api.Errorf(api.BadRequest, "%s: %s answers range %q of version %s, wanted one from byte %d of the version that the part is of; it is begun anew",
				p.x.Path, host, clip(resp.Header.Get("Content-Range")), clip(tag), asked)}
		}
		total = all
	} else if p.have > 0 { // the file has changed, or this server knows no ranges
		if err := p.reset(); err != nil {
			return err
		}
	}
	if p.size < 0 && total >= 0 {
		if total > maxFileBytes {
			return api.Errorf(api.BadRequest, "%s: %s sends %d bytes, wanted at most %d", p.x.Path, host, total, int64(maxFileBytes))
		}
		p.size = total
	}
	if total >= 0 && total != p.size {
		return api.Errorf(api.BadRequest, "%s: %s sends %d bytes, wanted %d", p.x.Path, host, total, p.size)
	}
	if p.size < 0 && p.x.sum() == "" {
		return api.Errorf(api.BadRequest, "%s: %s gives neither a size nor a checksum; nothing would tell a part from the whole", p.x.Path, host)
	}
	p.joined = p.have > 0
	if p.have == 0 {
		p.etag = tag
		if tag == "" {
			_ = os.Remove(p.etagPath())
		} else if err := os.WriteFile(p.etagPath(), []byte(tag), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// append adds bytes to the part, never more than the file has.
func (p *part) append(b []byte, write func(*os.File, []byte) (int, error)) error {
	limit := p.size
	if limit < 0 {
		limit = maxUnsized
	}
	if int64(len(b)) > limit-p.have {
		if err := p.reset(); err != nil {
			return err
		}
		return api.Errorf(api.BadRequest, "%s: the server sends more than the %d bytes that it has", p.x.Path, limit)
	}
	n, err := write(p.file, b)
	p.have += int64(n)
	if p.digest != nil {
		p.digest.Write(b[:n])
	}
	return err
}

// end says whether the end of an answer is the end of the file.
func (p *part) end(host string) error {
	if p.size >= 0 && p.have < p.size {
		return &retryError{err: api.Errorf(api.BadRequest, "%s: %s ends it after %d bytes, wanted %d", p.x.Path, host, p.have, p.size)}
	}
	p.ended = true
	return nil
}

// finish verifies the whole file and gives it its name. A file with the wrong contents is thrown away.
func (p *part) finish() error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	if err := p.file.Close(); err != nil {
		return err
	}
	var err error
	if p.digest != nil {
		err = p.x.check(p.digest)
	} else {
		err = p.x.checkFile(p.blob + ".part")
	}
	if err != nil {
		return errors.Join(err, os.Remove(p.blob+".part"), p.forget())
	}
	p.x.Size = p.have
	if err := os.Rename(p.blob+".part", p.blob); err != nil {
		return err
	}
	return p.forget()
}

func (p *part) forget() error {
	if err := os.Remove(p.etagPath()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// strongETag is an entity tag that If-Range may have, or "".
func strongETag(tag string) string {
	tag = strings.TrimSpace(tag)
	bad := func(r rune) bool { return r < ' ' || r > '~' || r == '"' }
	if len(tag) < 3 || len(tag) > 512 || tag[0] != '"' || tag[len(tag)-1] != '"' || strings.ContainsFunc(tag[1:len(tag)-1], bad) {
		return ""
	}
	return tag
}

// contentRange reads "bytes FROM-TO/ALL"; all is -1 when the server does not say it.
func contentRange(text string) (from, all int64, ok bool) {
	rest, ok := strings.CutPrefix(text, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	a, b, ok3 := strings.Cut(span, "-")
	from, err := strconv.ParseInt(a, 10, 64)
	to, err2 := strconv.ParseInt(b, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || from < 0 || to < from {
		return 0, 0, false
	}
	if size == "*" {
		return from, -1, true
	}
	all, err = strconv.ParseInt(size, 10, 64)
	return from, all, err == nil && to < all
}

// watchdog ends a transfer that hardly moves.
type watchdog struct {
	bytes    atomic.Int64
	cancel   context.CancelCauseFunc
	ctx      context.Context
	every    time.Duration
	minBytes int64
}

var errStalled = errors.New("stalled")

// watch starts a watchdog over what is done under the context that it answers.
func (c *Client) watch(ctx context.Context) (context.Context, *watchdog) {
	w := &watchdog{every: c.limits.Stall, minBytes: c.limits.MinBytes}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(w.every)
		defer tick.Stop()
		for last := int64(0); ; {
			select {
			case <-w.ctx.Done():
				return
			case <-tick.C:
			}
			now := w.bytes.Load()
			if now-last < w.minBytes {
				w.cancel(errStalled)
				return
			}
			last = now
		}
	}()
	return w.ctx, w
}

// explain makes an error that the watchdog caused one that may pass.
func (w *watchdog) explain(u *url.URL, err error) error {
	if err == nil || !errors.Is(context.Cause(w.ctx), errStalled) {
		return err
	}
	return &retryError{err: api.Errorf(api.Busy, "%s sends less than %d bytes in %s", u.Host, w.minBytes, w.every)}
}

// reader counts what is read through it.
func (w *watchdog) reader(r io.Reader) io.Reader { return countingReader{r, w} }

type countingReader struct {
	io.Reader
	w *watchdog
}

func (r countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.w.bytes.Add(int64(n))
	return n, err
}

func (w *watchdog) stop() { w.cancel(nil) }
