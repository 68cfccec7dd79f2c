package server

import (
	"context"
	"crypto/hmac"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/interchange"
)

// download is a file of a checkpoint that a link gives to whoever has it, until it ends.
type download struct {
	path    api.Path
	file    string // "": the archive
	notes   bool   // it was given out to the checkpoint's owner: the archive has the run's notes, too, which are not published with a checkpoint
	expires time.Time
}

// downloadMAC signs a download.
func (s *Server) downloadMAC(d download) string {
	return hex.EncodeToString(s.mac("archive", d.path.String(), d.file, strconv.FormatBool(d.notes), strconv.FormatInt(d.expires.Unix(), 10)))
}

// link is where whoever has it gets a download.
func (s *Server) link(base *url.URL, d download) string {
	p := d.path
	at := base.JoinPath("archive", p.Run, p.Kind, p.Name)
	if d.file != "" {
		at = at.JoinPath(d.file)
	}
	query := url.Values{"expires": {strconv.FormatInt(d.expires.Unix(), 10)}, "signature": {s.downloadMAC(d)}}
	if d.notes {
		query.Set("notes", "true")
	}
	at.RawQuery = query.Encode()
	return at.String()
}

// linkLife is when links of now end.
func (s *Server) linkLife() time.Time {
	return s.opt.Now().Add(s.lim.ArchiveLife).Truncate(time.Second).UTC()
}

// linked is the download that a link of this server's names, when there is room for one more.
func (s *Server) linked(c *call, file string) (d download, err error) {
	if d.path, err = pathOf(c); err != nil {
		return d, err
	}
	query := c.URL.Query()
	expires, err := strconv.ParseInt(query.Get("expires"), 10, 64)
	d.file, d.notes, d.expires = file, query.Get("notes") == "true", time.Unix(expires, 0)
	if err != nil || !hmac.Equal([]byte(query.Get("signature")), []byte(s.downloadMAC(d))) {
		return d, refuse(http.StatusForbidden, api.BadRequest, "the link is not one of this server's")
	}
	if s.opt.Now().Unix() > expires {
		return d, refuse(http.StatusForbidden, api.BadRequest, "the link has ended: ask for a new one")
	}
	return d, s.roomToDownload(c)
}

// roomToDownload takes the place of one download until the call is answered.
func (s *Server) roomToDownload(c *call) error {
	if !s.downloads.take("", 1) {
		return refuse(http.StatusServiceUnavailable, api.Busy, "%d downloads are under way, the limit is that", s.lim.Downloads)
	}
	c.later(func() { s.downloads.give("", 1) })
	return nil
}

// archiveLink gives out a link that works without a key: clients fetch it with a plain program.
func (s *Server) archiveLink(c *call) (any, error) {
	p, err := pathOf(c)
	if err != nil {
		return nil, err
	}
	k, err := s.readable(c.Context(), c.owner, p)
	if err != nil {
		return nil, err
	}
	base, err := s.base(c)
	if err != nil {
		return nil, err
	}
	expires := s.linkLife()
	out := wire.ArchiveResponse{URL: s.link(base, download{path: k.Path, notes: k.Owner == c.owner, expires: expires}), Expires: expires}
	if before(c.Header.Get("X-Stainless-Package-Version"), 0, 25) { // they know redirects only
		h := c.w.Header()
		h.Set("Location", out.URL)
		h.Set("Expires", expires.Format(http.TimeFormat))
		return jsonReply(http.StatusFound, out)
	}
	return out, nil
}

// before says whether a client's version, such as 0.16.1, is below major.minor. One that cannot be read is not.
func before(version string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(version, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a < major || a == major && b < minor
}

// base is where the client reaches this server.
func (s *Server) base(c *call) (*url.URL, error) {
	if s.opt.PublicURL != "" {
		return url.Parse(s.opt.PublicURL)
	}
	scheme := "http"
	if c.TLS != nil {
		scheme = "https"
	}
	u := &url.URL{Scheme: scheme, Host: c.Host}
	if u.Host == "" || strings.ContainsAny(u.Host, "/\\?#@ ") {
		return nil, api.Errorf(api.BadRequest, "the Host header %q names no host", c.Host)
	}
	return u, nil
}

// archive sends a checkpoint as a tar file to whoever has a link.
func (s *Server) archive(c *call) (any, error) {
	d, err := s.linked(c, "")
	if err != nil {
		return nil, err
	}
	p := d.path
	st, err := s.store()
	if err != nil {
		return nil, err
	}
	r, err := st.Open(c.Context(), p)
	if err != nil {
		return nil, err
	}
	k := r.Checkpoint()
	o := interchange.ArchiveOptions{Optimizer: k.Optimizer}
	if run, err := st.Run(c.Context(), p.Run); err == nil && d.notes {
		o.Metadata = run.UserMetadata
	}
	n, err := interchange.ArchiveBytes(r, o)
	if err != nil {
		r.Close()
		return nil, err
	}
	return stream{
		kind: "application/x-tar", name: strings.NewReplacer(":", "-").Replace(p.Run+"_"+p.Kind+"_"+p.Name) + ".tar", bytes: n,
		write: func(ctx context.Context, w io.Writer) error { return interchange.WriteArchive(ctx, w, r, o) },
		close: r.Close,
	}, nil
}
