// Package hub downloads base models from a Hugging Face hub, or a mirror of one, into a models folder.
//
// A model appears in the folder when all of its files are there and verified, and not before: files are
// collected beside it, in ORG/.NAME.pull, under the names of their checksums, and renamed into place at the
// end. What was interrupted goes on where it stopped. The server is not trusted: names, sizes and redirects
// that it answers are checked, and the access token goes to the endpoint's own host and nowhere else.
package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// Request says which model to download, which of its files, and to where.
type Request struct {
	Name     string   // ORG/NAME
	Revision string   // branch, tag or commit; "": main
	Models   string   // the models folder; the model goes to Models/ORG/NAME
	Include  []string // patterns (path.Match, or a file name without folder) of files beyond those that the engine reads
	Exclude  []string // patterns of files to leave out; they win
}

// Result says what a pull has done.
type Result struct {
	Name       string   `json:"name"`
	Revision   string   `json:"revision"`
	Commit     string   `json:"commit"`
	Dir        string   `json:"dir"`
	Files      int      `json:"files"`
	Bytes      int64    `json:"bytes"`            // of all files
	Downloaded int64    `json:"downloaded_bytes"` // by this pull
	Notes      []string `json:"notes,omitempty"`  // what the user should know, such as files without a checksum
}

// Event is a step of a pull. Events come from several goroutines, one at a time.
type Event struct {
	Kind Kind
	File string        // "" for Planned
	Done int64         // bytes of File that are there, or of all files for Planned
	Size int64         // bytes of File, or of all files; -1: not known
	Wait time.Duration // Retrying: until the next attempt
	Err  error         // Retrying: why
}

// Kind is the kind of an Event.
type Kind int

// The kinds of events.
const (
	Planned   Kind = iota // the files and their sizes are known
	Advanced              // Done has changed, mostly upwards
	Retrying              // an attempt failed; the next follows after Wait
	Completed             // the file is there and verified
)

// Limits bound what one pull may use. The zero value of a field means its default.
type Limits struct {
	Parallel int           // files at a time; default 4
	Attempts int           // per request, in a row without progress; default 6
	Stall    time.Duration // a transfer slower than MinBytes in this time is begun anew; default 30 s
	MinBytes int64         // default 32 KiB
	MaxWait  time.Duration // longest wait that a server may ask for; default 5 min
}

func (l Limits) withDefaults() Limits {
	l.Parallel = orDefault(l.Parallel, 4)
	l.Attempts = orDefault(l.Attempts, 6)
	l.Stall = orDefault(l.Stall, 30*time.Second)
	l.MinBytes = orDefault(l.MinBytes, 32<<10)
	l.MaxWait = orDefault(l.MaxWait, 5*time.Minute)
	return l
}

func orDefault[T int | int64 | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

// Client downloads from one endpoint. Any goroutine may use it.
type Client struct {
	settings Settings
	limits   Limits
	web      http.RoundTripper // not an http.Client: redirects follow the rules of this package
	agent    string

	mu     sync.Mutex // orders events
	report func(Event)

	// The surroundings, which tests replace.
	now    func() time.Time
	sleep  func(context.Context, time.Duration) error
	jitter func() float64 // in [0, 1)
	free   func(dir string) (int64, error)
	write  func(*os.File, []byte) (int, error)
}

// New returns a client. agent is the User-Agent; report may be nil.
func New(s Settings, l Limits, agent string, report func(Event)) (*Client, error) {
	var err error
	if s.Endpoint, err = parseEndpoint(s.endpointText()); err != nil {
		return nil, err
	}
	if report == nil {
		report = func(Event) {}
	}
	l = l.withDefaults()
	return &Client{
		settings: s, limits: l, agent: agent, report: report, web: newWeb(l),
		now: time.Now, sleep: sleep, jitter: rand.Float64, free: disk.Free, write: (*os.File).Write,
	}, nil
}

func (c *Client) tell(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report(e)
}

// Pull downloads a model. When it fails or ctx ends, the parts that are there are kept for the next pull;
// the models folder never shows a model that is not whole. Errors are *api.Error: NotFound, BadRequest for
// what the caller can change (also names of files that would leave the folder, and a disk that is full), Busy
// for a pull that runs already or a server that stays overloaded, Cancelled.
func (c *Client) Pull(ctx context.Context, r Request) (*Result, error) {
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	if r.Revision == "" {
		r.Revision = "main"
	}
	if err := checkRevision(r.Revision); err != nil {
		return nil, err
	}
	if err := checkPatterns(r.Include, r.Exclude); err != nil {
		return nil, err
	}
	if r.Models == "" {
		return nil, api.Errorf(api.BadRequest, "pull %s: no models folder is given", r.Name)
	}
	if c.settings.Offline != "" {
		return nil, api.Errorf(api.BadRequest, "pull %s: offline mode, %s is set; nothing is downloaded", r.Name, c.settings.Offline)
	}
	f, err := openFolder(r.Models, r.Name)
	if err != nil {
		return nil, err
	}
	defer f.close()
	res, err := c.pull(ctx, r, f)
	switch {
	case err == nil:
		return res, nil
	case ctx.Err() != nil:
		return nil, api.Errorf(api.Cancelled, "pull %s: stopped; what is there is kept, and the same command goes on from it: %w", r.Name, ctx.Err())
	}
	return nil, api.Errorf(api.CodeOf(err), "pull %s: %w", r.Name, err)
}

func (c *Client) pull(ctx context.Context, r Request, f *folder) (*Result, error) {
	list, err := c.list(ctx, r.Name, r.Revision)
	if err != nil {
		return nil, err
	}
	files, index, err := list.choose(r)
	if err != nil {
		return nil, err
	}
	res := &Result{Name: r.Name, Revision: r.Revision, Commit: list.Commit, Dir: f.dir}
	old, err := f.record()
	if err != nil {
		return nil, err
	}
	g := &getter{c: c, name: r.Name, commit: list.Commit, folder: f, old: old}
	if index != nil { // names the weights files, so it comes first
		if err := g.get(ctx, index); err != nil {
			return nil, err
		}
		shards, err := list.shards(f.blob(index), r)
		if err != nil {
			return nil, err
		}
		files = append(files, shards...)
	}
	if err := checkChosen(files); err != nil {
		return nil, err
	}
	for _, x := range files {
		if x.Size < 0 || x.sum() == "" {
			if err := c.head(ctx, r.Name, list.Commit, x); err != nil {
				return nil, err
			}
		}
		if x.Size > 0 {
			res.Bytes += x.Size
		}
		if x.sum() == "" {
			res.Notes = append(res.Notes, fmt.Sprintf("%s: the server gives no checksum; only its size is checked", x.Path))
		}
	}
	res.Files = len(files)
	res.Notes = append(res.Notes, list.notes(files)...)
	if old.has(f.dir, list.Commit, files) {
		f.discard()
		return res, nil
	}
	if err := g.checkSpace(files, res.Bytes); err != nil {
		return nil, err
	}
	if err := g.all(ctx, files); err != nil {
		return nil, err
	}
	res.Downloaded, res.Bytes = g.downloaded.Load(), 0
	for _, x := range files {
		res.Bytes += x.Size // now known of all
	}
	err = f.complete(record{Name: r.Name, Revision: r.Revision, Commit: list.Commit, Endpoint: c.settings.Endpoint.String(), Files: files})
	return res, diskError(filepath.Dir(f.dir), err, c.free)
}

// freshFile reports whether a plain file of this size is at path; a size below 0 means any.
func freshFile(path string, size int64) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode().IsRegular() && (size < 0 || st.Size() == size)
}

// diskError says which part of the disk's trouble the user can do something about.
func diskError(dir string, err error, free func(string) (int64, error)) error {
	switch {
	case disk.IsFull(err):
		left := "an unknown number of bytes"
		if n, err := free(dir); err == nil {
			left = bytesText(n)
		}
		return api.Errorf(api.BadRequest, "the disk of %s is full (%s left); make room and pull again, which goes on from here: %w", dir, left, err)
	case errors.Is(err, fs.ErrPermission):
		return api.Errorf(api.BadRequest, "%s cannot be written: %w", dir, err)
	}
	return err
}

// sleep waits, or answers ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}

func (f *folder) blob(x *File) string { return filepath.Join(f.staging, x.id()) }
