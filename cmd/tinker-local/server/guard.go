package server

import (
	"crypto/rand"
	"crypto/subtle"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// idHeader names a request in answers and in the log.
const idHeader = "X-Request-Id"

func requestID(w http.ResponseWriter) string { return w.Header().Get(idHeader) }

// guarded puts what every request must pass before h: it gets an id for the log, a panic fails it alone, it must be meant for
// this server and not come from a web page, and it must come in and be taken in time.
func (s *Server) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := rand.Text()[:12]
		began := time.Now()
		seen := &watched{ResponseWriter: w}
		w.Header().Set(idHeader, id)
		// Of an earlier request of the connection there may be a deadline for writing that has passed. Whoever reads the body sets one of his
		// own; this one is for bodies that nobody reads, of which the standard library takes some before it answers.
		connection := http.NewResponseController(w)
		_ = connection.SetWriteDeadline(began.Add(s.lim.AnswerTime))
		if r.ContentLength != 0 {
			_ = connection.SetReadDeadline(began.Add(s.lim.HeadTime))
		}
		defer func() {
			v := recover()
			if v != nil && v != http.ErrAbortHandler {
				s.log.Error("defect in the server", "request_id", id, "path", clipped(r.URL.Path), "panic", v, "stack", string(debug.Stack()))
				if seen.status == 0 {
					s.refuse(seen, r, api.Errorf(api.Internal, "defect in the server; its log has request %s", id))
					v = nil
				} else {
					v = http.ErrAbortHandler // no client takes a part for the whole
				}
			}
			s.log.Debug("request", "request_id", id, "method", r.Method, "path", clipped(r.URL.Path), "status", seen.status, "bytes", seen.bytes, "took", time.Since(began), "from", r.RemoteAddr)
			if v != nil {
				panic(v)
			}
		}()
		if err := s.allowed(r); err != nil {
			s.refuse(seen, r, err)
			return
		}
		h.ServeHTTP(seen, r)
	})
}

// watched remembers what was answered.
type watched struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *watched) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *watched) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// allowed refuses requests for other hosts, which a web page can send here by a name of its own that points to this machine,
// those of which the browser says that a page sends them, and paths that the standard library would answer in its own way.
func (s *Server) allowed(r *http.Request) error {
	if p := r.URL.EscapedPath(); !plainPath(p) || r.RequestURI == "*" {
		return api.Errorf(api.NotFound, "there is no %s %s", clipped(r.Method), clipped(p))
	}
	if s.opt.Hosts != nil {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !slices.Contains(s.opt.Hosts, strings.ToLower(strings.Trim(host, "[]"))) {
			return refuse(http.StatusForbidden, api.BadRequest, "the request is for the host %q, wanted one of %s", clipped(r.Host), strings.Join(s.opt.Hosts, ", "))
		}
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		return refuse(http.StatusForbidden, api.BadRequest, "the request comes from a web page (origin %q); they are not served", clipped(origin))
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "none" {
		return refuse(http.StatusForbidden, api.BadRequest, "the request comes from a web page (Sec-Fetch-Site %q); they are not served", clipped(site))
	}
	return nil
}

// plainPath says whether a path has no empty parts, dots and the like.
func plainPath(p string) bool {
	clean := path.Clean(p)
	if clean != "/" && strings.HasSuffix(p, "/") {
		clean += "/"
	}
	return clean == p && strings.HasPrefix(p, "/")
}

// identify finds out whose the call is. The key is in X-API-Key, where the SDK puts it.
func (s *Server) identify(c *call) error {
	key := c.Header.Get("X-API-Key")
	if key == "" {
		return refuse(http.StatusUnauthorized, api.BadRequest, "the header X-API-Key is missing: set TINKER_API_KEY to a key of this server")
	}
	if a := s.opt.Admin; a != "" && subtle.ConstantTimeCompare([]byte(key), []byte(a)) == 1 {
		c.owner, c.admin = engine.LocalOwner, true
		return nil
	}
	owner, fingerprint, ok := s.credential(key)
	switch {
	case ok:
		c.owner, c.fingerprint = owner, fingerprint
		return nil
	case strings.HasPrefix(key, tokenPrefix):
		c.w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`) // clients since 0.38 get themselves another one
		return refuse(http.StatusUnauthorized, api.BadRequest, "the token in X-API-Key is not one of this server's, or not any more")
	}
	return refuse(http.StatusUnauthorized, api.BadRequest, "the key in X-API-Key is not one of this server's")
}

// unknownPath answers what no route matches: 405 if it would with another method.
func (s *Server) unknownPath(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := r.Clone(r.Context())
		probe.Method = method
		if _, pattern := mux.Handler(probe); pattern != "/" && pattern != "" {
			allow = append(allow, method)
		}
	}
	if allow != nil {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		s.refuse(w, r, refuse(http.StatusMethodNotAllowed, api.BadRequest, "%s %s: wanted %s", clipped(r.Method), clipped(r.URL.Path), strings.Join(allow, " or ")))
		return
	}
	s.refuse(w, r, api.Errorf(api.NotFound, "there is no %s %s", clipped(r.Method), clipped(r.URL.Path)))
}
