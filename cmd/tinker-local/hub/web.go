package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"tinkerlocal/engine/api"
)

const maxRedirects = 8

// newWeb returns a transport with a bound on each step; bodies are watched by their readers.
func newWeb(l Limits) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  l.Stall,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    l.Parallel,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
}

// place is what a request is about, for messages.
type place struct{ name, revision, file string }

func (p place) String() string {
	if p.file != "" {
		return p.file
	}
	return p.name
}

// do sends a request and follows redirects. It answers the last response, whose status is 200 or 206, and
// the header of the first one, which is the hub's own even when the file lies elsewhere.
func (c *Client) do(ctx context.Context, method string, u *url.URL, header http.Header, p place) (*http.Response, http.Header, error) {
	var first http.Header
	for range maxRedirects + 1 {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, nil, api.Errorf(api.BadRequest, "%s: the address on %s is malformed", p, u.Host)
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", c.agent)
		ours := c.settings.mayCarryToken(u)
		if ours && c.settings.Token.value != "" {
			req.Header.Set("Authorization", "Bearer "+c.settings.Token.value)
		}
		resp, err := c.web.RoundTrip(req)
		if err != nil {
			return nil, nil, transferError(u, err)
		}
		if first == nil {
			first = resp.Header
		}
		switch resp.StatusCode {
		case http.StatusOK, http.StatusPartialContent:
			return resp, first, nil
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // lets the connection be used again
			resp.Body.Close()
			if method == http.MethodHead && first.Get("X-Linked-Size") != "" {
				return resp, first, nil // all that a HEAD is for
			}
			if u, err = redirect(u, resp.Header.Get("Location"), p); err != nil {
				return nil, nil, err
			}
		default:
			resp.Body.Close()
			return nil, nil, c.statusError(resp, u, p, ours)
		}
	}
	return nil, nil, api.Errorf(api.BadRequest, "%s: more than %d redirects, the last to %s", p, maxRedirects, u.Host)
}

// redirect checks where a server sends us. The addresses are not repeated in messages: those of content
// networks have signatures in them.
func redirect(from *url.URL, location string, p place) (*url.URL, error) {
	to, err := url.Parse(location)
	if err != nil || location == "" {
		return nil, api.Errorf(api.BadRequest, "%s: %s redirects to a malformed address", p, from.Host)
	}
	to = from.ResolveReference(to)
	to.Fragment = ""
	switch {
	case to.Scheme != "https" && to.Scheme != "http" || to.Host == "":
		return nil, api.Errorf(api.BadRequest, "%s: %s redirects to scheme %q, wanted https", p, from.Host, clip(to.Scheme))
	case to.User != nil:
		return nil, api.Errorf(api.BadRequest, "%s: %s redirects to an address on %s with a user name in it", p, from.Host, to.Host)
	case from.Scheme == "https" && to.Scheme != "https":
		return nil, api.Errorf(api.BadRequest, "%s: %s redirects from https to plain http on %s", p, from.Host, to.Host)
	}
	return to, nil
}

// retryError is a failure that may pass.
type retryError struct {
	err  error
	wait time.Duration // asked for by the server; 0: not said
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// transferError makes an error of the network say which host it is about, and not which address. Names that
// do not exist and certificates that are wrong do not pass; all else may.
func transferError(u *url.URL, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	said := fmt.Errorf("%s: %w", u.Host, err)
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return api.Errorf(api.NotFound, "%w; is the machine online, and is the endpoint right?", said)
	case errors.As(err, &cert):
		return api.Errorf(api.BadRequest, "%w", said)
	}
	return &retryError{err: said}
}

// statusError makes a message of an answer that is no file. ours: the answer is of the endpoint itself.
func (c *Client) statusError(resp *http.Response, u *url.URL, p place, ours bool) error {
	status := resp.StatusCode
	said := ""
	if m := resp.Header.Get("X-Error-Message"); m != "" {
		said = fmt.Sprintf(" (the server says %q)", clip(m))
	}
	ours = ours || u.Host == c.settings.Endpoint.Host
	code := resp.Header.Get("X-Error-Code")
	switch {
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		err := api.Errorf(api.Busy, "%s: %s answers %d %s%s", p, u.Host, status, http.StatusText(status), said)
		return &retryError{err, c.asked(resp.Header)}
	case !ours && (status == http.StatusForbidden || status == http.StatusUnauthorized || status == http.StatusNotFound || status == http.StatusGone):
		// An address that the hub signed is good for a while only: the next attempt gets a fresh one.
		return &retryError{err: api.Errorf(api.BadRequest, "%s: %s, to which the hub redirects, answers %d %s", p, u.Host, status, http.StatusText(status))}
	case status == http.StatusRequestedRangeNotSatisfiable:
		return errRange
	case code == "GatedRepo":
		return api.Errorf(api.BadRequest, "%s is gated: accept its terms at %s/%s with your account, then %s%s", p.name, c.settings.Endpoint, p.name, c.tokenHint(), said)
	case status == http.StatusUnauthorized:
		return api.Errorf(api.NotFound, "%s answers 401: there is no model %s, or it is private or gated; check the name, or %s%s", u.Host, p.name, c.tokenHint(), said)
	case status == http.StatusForbidden:
		return api.Errorf(api.BadRequest, "%s answers 403: access to %s is refused; give a token that may read it, and accept the model's terms if it has any: %s%s", u.Host, p.name, c.tokenHint(), said)
	case status == http.StatusNotFound && p.file != "":
		return api.Errorf(api.NotFound, "%s: %s answers 404 for this file of %s at %s%s", p.file, u.Host, p.name, p.revision, said)
	case status == http.StatusNotFound && code == "RevisionNotFound":
		return api.Errorf(api.NotFound, "%s has no revision %q on %s%s", p.name, p.revision, u.Host, said)
	case status == http.StatusNotFound:
		return api.Errorf(api.NotFound, "no model %s with revision %q on %s; check the name and --revision%s", p.name, p.revision, u.Host, said)
	}
	return api.Errorf(api.BadRequest, "%s: %s answers %d %s, wanted 200%s", p, u.Host, status, http.StatusText(status), said)
}

// tokenHint says what to do about the access token.
func (c *Client) tokenHint() string {
	switch {
	case c.settings.Token.value == "":
		return "give a token in $HF_TOKEN or with `hf auth login`"
	case !c.settings.mayCarryToken(c.settings.Endpoint):
		return "use an https endpoint: the " + c.settings.Token.String() + " is not sent over plain http"
	}
	return "check the " + c.settings.Token.String()
}

var resetText = regexp.MustCompile(`(?:^|;)\s*t=(\d{1,6})\b`)

// asked reads how long the server wants us to wait: Retry-After as seconds or a date, or the rest of a
// rate-limit window.
func (c *Client) asked(h http.Header) time.Duration {
	if v := strings.TrimSpace(h.Get("Retry-After")); v != "" {
		if n, err := strconv.ParseUint(v, 10, 31); err == nil {
			return time.Duration(n) * time.Second
		}
		if t, err := http.ParseTime(v); err == nil {
			return max(0, t.Sub(c.now()))
		}
	}
	if m := resetText.FindStringSubmatch(h.Get("RateLimit")); m != nil {
		n, _ := strconv.Atoi(m[1])
		return time.Duration(n) * time.Second
	}
	return 0
}

// errRange is the answer to a part that is longer than the file.
var errRange = errors.New("the server has no such range")

// attempts calls f until it succeeds, fails for good, or has failed too often. f reports whether it got on;
// then the count begins anew. what is the file, or another name for the events.
func (c *Client) attempts(ctx context.Context, what string, f func() (progress bool, err error)) error {
	for failed := 0; ; {
		progress, err := f()
		var again *retryError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.As(err, &again):
			return err
		}
		if failed++; progress {
			failed = 1
		}
		if failed >= c.limits.Attempts {
			return api.Errorf(codeOr(err, api.Busy), "%w; gave up after %d attempts", again.err, failed)
		}
		if again.wait > c.limits.MaxWait {
			return api.Errorf(api.Busy, "%w; it asks to wait %s, longer than the %s that are waited here; try again then", again.err, again.wait, c.limits.MaxWait)
		}
		wait := c.backoff(failed)
		if again.wait > 0 { // a little more than asked, so that all who wait do not come back at once
			wait = again.wait + time.Duration(c.jitter()*float64(time.Second))
		}
		c.tell(Event{Kind: Retrying, File: what, Wait: wait, Err: again.err})
		if err := c.sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// backoff is 1 s, 2 s, 4 s … up to 30 s, of which a random half is taken off.
func (c *Client) backoff(failed int) time.Duration {
	d := min(time.Second<<min(failed-1, 10), 30*time.Second)
	return d/2 + time.Duration(c.jitter()*float64(d/2))
}

func codeOr(err error, other api.Code) api.Code {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return other
}
