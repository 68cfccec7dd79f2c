package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
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

// downloadMAC signs a download: whoever has the link may read this file of the checkpoint until it ends. file "": the archive.
func (s *Server) downloadMAC(p api.Path, file string, expires int64) string {
	m := hmac.New(sha256.New, s.opt.Secret)
	m.Write([]byte("archive\x00" + p.String() + "\x00" + file + "\x00" + strconv.FormatInt(expires, 10)))
	return hex.EncodeToString(m.Sum(nil))
}

// link is where whoever has it may read a file of a checkpoint until then.
func (s *Server) link(base *url.URL, p api.Path, file string, expires time.Time) string {
	at := base.JoinPath("archive", p.Run, p.Kind, p.Name)
	if file != "" {
		at = at.JoinPath(file)
	}
	at.RawQuery = url.Values{
		"expires": {strconv.FormatInt(expires.Unix(), 10)}, "signature": {s.downloadMAC(p, file, expires.Unix())},
	}.Encode()
	return at.String()
}

// linkLife is when links of now end.
func (s *Server) linkLife() time.Time {
	return s.opt.Now().Add(s.lim.ArchiveLife).Truncate(time.Second).UTC()
}

// linked is the checkpoint whose file a link of this server's names, when there is room for one more download.
func (s *Server) linked(c *call, file string) (api.Path, error) {
	p, err := pathOf(c)
	if err != nil {
		return p, err
	}
	expires, err := strconv.ParseInt(c.URL.Query().Get("expires"), 10, 64)
	if err != nil || !hmac.Equal([]byte(c.URL.Query().Get("signature")), []byte(s.downloadMAC(p, file, expires))) {
		return p, refuse(http.StatusForbidden, api.BadRequest, "the link is not one of this server's")
	}
	if s.opt.Now().Unix() > expires {
		return p, refuse(http.StatusForbidden, api.BadRequest, "the link has ended: ask for a new one")
	}
	if !s.downloads.take("", 1) {
		return p, refuse(http.StatusServiceUnavailable, api.Busy, "%d downloads are under way, the limit is that", s.lim.Downloads)
	}
	c.later(func() { s.downloads.give("", 1) })
	return p, nil
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
	out := wire.ArchiveResponse{URL: s.link(base, k.Path, "", expires), Expires: expires}
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
	p, err := s.linked(c, "")
	if err != nil {
		return nil, err
	}
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
	if run, err := st.Run(c.Context(), p.Run); err == nil && run.Owner == k.Owner {
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
