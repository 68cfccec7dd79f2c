package data

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"tinkerlocal/engine/api"
)

const (
	maxLine   = 16 << 20 // bytes of one row: far above any context, far below any machine's memory
	chunkSize = 1 << 20  // bytes of text checked at once, by all processors
	maxBad    = 10       // complaints that are kept
	maxRows   = math.MaxInt32
)

// BadRow is a row that cannot be trained on.
type BadRow struct {
	Line   int
	Reason error
}

// Report is what checking a file has found.
type Report struct {
	Path      string
	Rows      int          // that are not blank
	Kinds     map[Kind]int // good rows of each kind
	Bad       int
	FirstBad  []BadRow // of them the first few
	Dropped   int      // examples that were too long and are left out
	Truncated int      // examples that were too long and are cut
	Ignored   []string // fields that nobody reads, sorted; at most 20
}

// line is one line of the file on its way to becoming entries.
type line struct {
	text   []byte
	offset int64
	number int

	kind    Kind
	items   []entry
	pair    bool
	drop    int
	cut     int
	ignored []string
	err     error
}

// Open reads a file to its end and checks every row. A file with more bad rows than o.SkipBad, or without a
// good one, is an error that names the first bad ones by file, line and reason. Close the set.
func Open(path string, o Options) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, api.Errorf(api.NotFound, "%w", err)
	}
	s := &Set{file: f, path: path, o: &o, report: Report{Path: path, Kinds: map[Kind]int{}}}
	if err := s.check(); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *Set) check() error {
	st, err := s.file.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return api.Errorf(api.BadRequest, "%s is not a regular file; rows are read again during training, so pipes and folders cannot be used", s.path)
	}
	r := &reader{buf: bufio.NewReaderSize(s.file, 1<<18)}
	ignored := map[string]bool{}
	for end := false; !end; {
		var chunk []line
		if chunk, end, err = r.chunk(); err != nil {
			return api.Errorf(api.BadRequest, "%s:%d: %w", s.path, r.number, err)
		}
		s.checkChunk(chunk)
		for _, l := range chunk {
			s.take(l, ignored)
			if s.report.Rows == maxRows {
				return api.Errorf(api.BadRequest, "%s: more than %d rows", s.path, maxRows)
			}
		}
		if s.o.Progress != nil {
			s.o.Progress(r.offset, st.Size())
		}
	}
	s.report.Ignored = slices.Sorted(maps.Keys(ignored))
	return s.verdict()
}

// checkChunk parses and encodes lines, on all processors.
func (s *Set) checkChunk(chunk []line) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(chunk)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(chunk) {
					return
				}
				s.checkLine(&chunk[i])
				chunk[i].text = nil
			}
		})
	}
	wg.Wait()
}

func (s *Set) checkLine(l *line) {
	r, err := parse(l.text, s.o.Kind, s.o.Numbers...)
	if err != nil {
		l.err = err
		return
	}
	l.kind, l.ignored = r.kind, r.ignored
	items, err := s.o.encode(r)
	if err != nil {
		l.err = err
		return
	}
	for part := range items {
		it := &items[part]
		f, err := s.o.limit(it)
		if err != nil {
			l.err, l.items = err, nil
			return
		}
		switch f {
		case dropped:
			l.drop++
			continue
		case cut:
			l.cut++
		}
		n, longest := it.tokens()
		l.pair = it.pair
		l.items = append(l.items, entry{
			offset: l.offset, bytes: int32(len(l.text)), line: int32(l.number), part: int32(part),
			tokens: int32(n), longest: int32(longest), targets: int32(it.targets()),
		})
	}
}

// take adds a checked line to the set.
func (s *Set) take(l line, ignored map[string]bool) {
	p := &s.report
	p.Rows++
	if l.err == nil && len(l.items) > 0 && len(s.entries) > 0 && l.pair != s.prefers {
		l.err = fmt.Errorf("a row of the kind %s in a file that began with other rows: preference pairs and examples are trained apart", l.kind)
	}
	if l.err != nil {
		if p.Bad++; len(p.FirstBad) < maxBad {
			p.FirstBad = append(p.FirstBad, BadRow{l.number, l.err})
		}
		return
	}
	p.Kinds[l.kind]++
	p.Dropped += l.drop
	p.Truncated += l.cut
	for _, name := range l.ignored {
		if len(ignored) < 20 {
			ignored[name] = true
		}
	}
	if len(l.items) > 0 {
		s.prefers = l.pair
		s.entries = append(s.entries, l.items...)
	}
}

// verdict is the error of a file that cannot be trained on.
func (s *Set) verdict() error {
	p := s.report
	if p.Bad > s.o.SkipBad {
		var b strings.Builder
		for i, bad := range p.FirstBad {
			if i > 0 {
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "%s:%d: %v", s.path, bad.Line, bad.Reason)
		}
		if more := p.Bad - len(p.FirstBad); more > 0 {
			fmt.Fprintf(&b, "\n%d more", more)
		}
		if p.Bad > 1 {
			fmt.Fprintf(&b, "\n%d of %d rows are bad, %d may be skipped", p.Bad, p.Rows, s.o.SkipBad)
		}
		return api.Errorf(api.BadRequest, "%s", b.String())
	}
	if len(s.entries) > 0 {
		return nil
	}
	if p.Rows == 0 {
		return api.Errorf(api.BadRequest, "%s: no rows; %s", s.path, wanted)
	}
	return api.Errorf(api.BadRequest, "%s: nothing is left of %d rows: %d bad, %d too long", s.path, p.Rows, p.Bad, p.Dropped)
}

// reader cuts a file into lines.
type reader struct {
	buf    *bufio.Reader
	offset int64
	number int // of the line read last
}

// chunk reads about chunkSize bytes of lines, without the blank ones.
func (r *reader) chunk() (lines []line, end bool, err error) {
	for from := r.offset; r.offset-from < chunkSize; {
		at := r.offset
		text, err := r.next()
		if err == io.EOF {
			return lines, true, nil
		}
		if err != nil {
			return lines, false, err
		}
		if r.number == 1 {
			bom := len(text) - len(bytes.TrimPrefix(text, []byte("\uFEFF")))
			text, at = text[bom:], at+int64(bom)
		}
		if len(bytes.TrimSpace(text)) > 0 {
			lines = append(lines, line{text: text, offset: at, number: r.number})
		}
	}
	return lines, false, nil
}

// next returns the next line, its end included, however long up to maxLine.
func (r *reader) next() ([]byte, error) {
	var text []byte
	for {
		part, err := r.buf.ReadSlice('\n')
		text = append(text, part...)
		r.offset += int64(len(part))
		switch {
		case len(text) > maxLine:
			r.number++
			return nil, fmt.Errorf("the line is longer than %d bytes", maxLine)
		case err == nil, err == io.EOF && len(text) > 0:
			r.number++
			return text, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
