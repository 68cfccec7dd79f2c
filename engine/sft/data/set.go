package data

import (
	"math/rand/v2"
	"os"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/sft"
)

// entry is what is kept of an example: where its row stands and what it was when it was checked.
type entry struct {
	offset  int64 // of the line in the file
	bytes   int32 // of the line
	line    int32 // from 1
	part    int32 // which of the row's examples
	tokens  int32 // input tokens; of a preference pair, of both answers
	longest int32 // input tokens of the longer answer
	targets int32
}

// Set is a checked training file, or a part of one: [sft.Source] or [sft.PairSource]. Its methods may not be called by two
// goroutines at once.
type Set struct {
	file    *os.File
	path    string
	o       *Options
	prefers bool
	entries []entry
	report  Report
	buf     []byte
	last    struct { // the row read last: its other parts are often asked for next
		offset int64
		items  []item
	}
}

// Len is the number of examples or preference pairs.
func (s *Set) Len() int { return len(s.entries) }

// Prefers tells whether the set has preference pairs; else it has examples.
func (s *Set) Prefers() bool { return s.prefers }

// Report is what checking the whole file has found.
func (s *Set) Report() Report { return s.report }

// Line is the number of the line that holds the i-th example, from 1.
func (s *Set) Line(i int) int { return int(s.entries[i].line) }

// Close closes the file; the parts made by Split share it.
func (s *Set) Close() error { return s.file.Close() }

// Example reads the i-th example again. It fails when the file is no longer what was checked.
func (s *Set) Example(i int) (sft.Example, error) {
	it, err := s.item(i)
	return it.first, err
}

// Pair is Example for preference pairs.
func (s *Set) Pair(i int) (sft.Pair, error) {
	it, err := s.item(i)
	return sft.Pair{Chosen: it.first, Rejected: it.second}, err
}

func (s *Set) item(i int) (item, error) {
	e := s.entries[i]
	items := s.last.items
	if items == nil || s.last.offset != e.offset {
		s.buf = slices.Grow(s.buf[:0], int(e.bytes))[:e.bytes]
		if _, err := s.file.ReadAt(s.buf, e.offset); err != nil {
			return item{}, s.changed(e, err)
		}
		r, err := parse(s.buf, s.o.Kind, s.o.Numbers...)
		if err != nil {
			return item{}, s.changed(e, err)
		}
		if items, err = s.o.encode(r); err != nil {
			return item{}, s.changed(e, err)
		}
		for k := range items {
			if _, err := s.o.limit(&items[k]); err != nil {
				return item{}, s.changed(e, err)
			}
		}
		s.last.offset, s.last.items = e.offset, items
	}
	if int(e.part) >= len(items) {
		return item{}, s.changed(e, errOther)
	}
	it := items[e.part]
	if n, _ := it.tokens(); n != int(e.tokens) || it.targets() != int(e.targets) || it.pair != s.prefers {
		return item{}, s.changed(e, errOther)
	}
	return it, nil
}

var errOther = api.Errorf(api.BadRequest, "it has other tokens")

func (s *Set) changed(e entry, err error) error {
	return api.Errorf(api.BadRequest, "%s:%d: the row has changed since it was checked: %w", s.path, e.line, err)
}

// Split takes a share of the rows out for validation, at least one row on either side; which ones depends on seed
// and their number only. The examples of one row stay together.
func (s *Set) Split(share float64, seed int64) (train, val *Set, err error) {
	rows := 0
	for i, e := range s.entries {
		if i == 0 || e.line != s.entries[i-1].line {
			rows++
		}
	}
	if rows < 2 {
		return nil, nil, api.Errorf(api.BadRequest, "%s: %d good row cannot be split into training and validation", s.path, rows)
	}
	n := min(max(int(float64(rows)*share+0.5), 1), rows-1)
	taken := make([]bool, rows)
	for _, r := range rand.New(rand.NewPCG(uint64(seed), 0x5e7)).Perm(rows)[:n] {
		taken[r] = true
	}
	parts := [2]*Set{}
	for k := range parts {
		parts[k] = &Set{file: s.file, path: s.path, o: s.o, prefers: s.prefers, report: s.report}
	}
	row := -1
	for i, e := range s.entries {
		if i == 0 || e.line != s.entries[i-1].line {
			row++
		}
		k := 0
		if taken[row] {
			k = 1
		}
		parts[k].entries = append(parts[k].entries, e)
	}
	return parts[0], parts[1], nil
}
