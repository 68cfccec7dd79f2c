package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"tinkerlocal/engine/api"
)

// Times and sizes of connections.
const (
	dialTime  = 5 * time.Second
	helloTime = 10 * time.Second // in which a server that lives answers, however busy its device is
	closeTime = 5 * time.Second  // for the other end to close what is given up
	idleTime  = time.Minute      // less than the server's, so that it never closes a connection that is just being used
	pipeBytes = 256 << 10
	maxAnswer = 1 << 30 // of JSON: a list of some million checkpoints
)

// Address is where a store is served, and how it is known to be the right one.
type Address struct {
	URL string `json:"url"` // of the server; the store is below Path
	Key string `json:"key"` // goes with every request

	// Certificate is the SHA-256 of the server's TLS certificate in hexadecimal. The certificate with this sum is trusted and no
	// other, whoever signed it and whatever names it has.
	Certificate string `json:"certificate_sha256,omitempty"`

	Protocol int `json:"protocol"` // of the serving program; see Protocol
}

// Path is where a server has its Handler.
const Path = "/local/v1/store"

// Fingerprint is what Address.Certificate is of a certificate in DER.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Client is an HTTP client for the server at a: it asks no proxy, and trusts the one certificate.
func (a Address) Client() *http.Client {
	t := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: dialTime}).DialContext,
		IdleConnTimeout: idleTime, MaxIdleConnsPerHost: 16, DisableCompression: true,
		WriteBufferSize: pipeBytes, ReadBufferSize: pipeBytes,
	}
	if a.Certificate != "" {
		t.TLSClientConfig = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, // the certificate itself is compared instead
			VerifyConnection: func(s tls.ConnectionState) error {
				return pinned(a.Certificate, s.PeerCertificates)
			},
		}
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func pinned(want string, got []*x509.Certificate) error {
	if len(got) == 0 || !strings.EqualFold(Fingerprint(got[0].Raw), want) {
		return errors.New("another program answers: its certificate is not the server's")
	}
	return nil
}

// ErrGone is in the chain of errors of a server that cannot be reached, or that has ended.
var ErrGone = errors.New("the server has gone")

// gone is the error of a server that cannot be reached.
func (s *Store) gone(err error) error {
	return &api.Error{Code: api.Closed, Msg: "the server at " + s.at.URL + " cannot be reached: " + err.Error(), Err: errors.Join(ErrGone, err)}
}

var (
	errClosed = api.Errorf(api.Closed, "the store is closed")
	errEnded  = errors.New("its connection has ended")
)

// sessionPath names what is in the session.
func (s *Store) sessionPath(parts ...string) string {
	return "/session/" + s.session + "/" + strings.Join(parts, "/")
}

// message is an answer whose body is open.
type message struct {
	*http.Response
	end func()
}

func (m *message) close() {
	m.Body.Close()
	m.end()
}

// ask sends a request. Its answer is a success, and must be closed. It fails when ctx ends, when the store is closed, and when
// the server goes away.
func (s *Store) ask(ctx context.Context, method, path string, query url.Values, body io.Reader, size int64) (*message, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	asking, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	end := func() { stop(); cancel() }
	u := s.at.URL + Path + path
	if query != nil {
		u += "?" + query.Encode()
	}
	r, err := http.NewRequestWithContext(asking, method, u, body)
	if err != nil {
		end()
		return nil, api.Errorf(api.Internal, "%w", err)
	}
	r.ContentLength = size
	r.Header.Set(keyHeader, s.at.Key)
	r.Header.Set(protocolHeader, strconv.Itoa(Protocol))
	a, err := s.http.Do(r)
	if err != nil {
		end()
		return nil, s.failed(ctx, err)
	}
	m := &message{a, end}
	if a.StatusCode == http.StatusOK {
		return m, nil
	}
	defer m.close()
	text, err := io.ReadAll(io.LimitReader(a.Body, maxCall))
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	err = parseError(a.Status, text)
	var e *api.Error
	if a.StatusCode == http.StatusServiceUnavailable && errors.As(err, &e) {
		e.Err = ErrGone // it ends, and so does all that is open there
	}
	return nil, err
}

// failed says why a connection broke.
func (s *Store) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if own := s.usable(); own != nil {
		return own
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without the address, which is told
	}
	return s.gone(err)
}

// usable says why nothing can be asked, or nil.
func (s *Store) usable() error {
	if s.life.Err() == nil {
		return nil
	}
	return context.Cause(s.life)
}

// askJSON sends JSON and reads JSON.
func askJSON[R any](ctx context.Context, s *Store, method, path string, v any) (out R, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return out, api.Errorf(api.BadRequest, "%w", err)
	}
	return readAnswer[R](ctx, s)(s.ask(ctx, method, path, nil, bytes.NewReader(b), int64(len(b))))
}

// readAnswer makes a reader of an answer in JSON.
func readAnswer[R any](ctx context.Context, s *Store) func(*message, error) (R, error) {
	return func(m *message, err error) (out R, _ error) {
		if err != nil {
			return out, err
		}
		defer m.close()
		err = readJSON(m.Body, maxAnswer, &out)
		var known *api.Error
		if err != nil && !errors.As(err, &known) {
			err = s.failed(ctx, err)
		}
		return out, err
	}
}

// begin opens the session and keeps its answer open.
func (s *Store) begin(ctx context.Context) error {
	if s.at.Protocol != Protocol {
		return mismatch(strconv.Itoa(s.at.Protocol))
	}
	late := time.AfterFunc(helloTime, func() { s.end(s.gone(errors.New("it does not answer"))) })
	defer late.Stop()
	stop := context.AfterFunc(ctx, func() { s.end(context.Cause(ctx)) })
	defer stop()
	m, err := s.ask(context.Background(), http.MethodPost, "/session", nil, nil, 0)
	if err != nil {
		return err
	}
	lines := json.NewDecoder(m.Body)
	var h hello
	if err := lines.Decode(&h); err != nil {
		m.close()
		return s.failed(ctx, err)
	}
	s.session = h.Session
	s.watch.Go(func() {
		defer m.close()
		io.Copy(io.Discard, m.Body) // nothing comes: it ends with the server, or with the store
		s.end(s.gone(errEnded))
	})
	return nil
}

// state of the asking end.
type state struct {
	at      Address
	http    *http.Client
	session string
	life    context.Context // ends with the store, or with the server; its cause says which
	end     context.CancelCauseFunc
	watch   sync.WaitGroup
}
