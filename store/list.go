package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tinkerlocal/engine/api"
)

func newestFirst(a, b *entry) int { return cmp.Compare(b.Seq, a.Seq) }

// List is of api.Store.
func (s *Store) List(ctx context.Context, q api.CheckpointQuery) (out api.CheckpointPage, err error) {
	if err := cancelled(ctx); err != nil {
		return out, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return out, err
	}
	now := s.opt.Now()
	name := strings.ToLower(q.Name)
	var all []*entry
	for p, e := range s.entries {
		c := &e.Checkpoint
		switch {
		case e.expired(now), q.Run != "" && q.Run != p.Run, q.Kind != "" && q.Kind != p.Kind,
			q.Owner != "" && q.Owner != c.Owner, q.Reader != "" && !c.ReadableBy(q.Reader),
			!isModel(c.BaseModel, q.BaseModel), !strings.Contains(strings.ToLower(p.Name), name):
		default:
			all = append(all, e)
		}
	}
	slices.SortFunc(all, newestFirst)
	from := 0
	if q.Cursor != "" {
		after, err := strconv.ParseInt(q.Cursor, 36, 64)
		if err != nil {
			return out, badCursor(q.Cursor)
		}
		from, _ = slices.BinarySearchFunc(all, after, func(e *entry, seq int64) int {
			if e.Seq >= seq {
				return -1 // at the cursor, or before it
			}
			return 1
		})
	}
	lo, hi, err := q.Window(from, len(all))
	if err != nil {
		return out, err
	}
	out.Total = len(all)
	out.Checkpoints = make([]api.Checkpoint, 0, hi-lo)
	for _, e := range all[lo:hi] {
		out.Checkpoints = append(out.Checkpoints, e.Checkpoint)
	}
	if hi < len(all) && hi > lo {
		out.Next = strconv.FormatInt(all[hi-1].Seq, 36)
	}
	return out, nil
}

// isModel compares a base model's name with what was searched for.
func isModel(name, want string) bool {
	return want == "" || strings.EqualFold(name, want) || strings.EqualFold(name[strings.LastIndexByte(name, '/')+1:], want)
}

func badCursor(c string) error {
	return api.Errorf(api.BadRequest, "cursor is %.80q, wanted one that a list has returned", c)
}

// Runs is of api.Store.
func (s *Store) Runs(ctx context.Context, q api.RunQuery) (out api.RunPage, err error) {
	if err := cancelled(ctx); err != nil {
		return out, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return out, err
	}
	var all []api.RunRecord
	for _, r := range s.runs {
		if (q.Owner == "" || q.Owner == r.Owner) && isModel(r.BaseModel, q.BaseModel) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b api.RunRecord) int { return compareRuns(runMark(a), runMark(b)) })
	from := 0
	if q.Cursor != "" {
		nanos, id, ok := strings.Cut(q.Cursor, "/")
		at, err := strconv.ParseInt(nanos, 36, 64)
		if !ok || err != nil {
			return out, badCursor(q.Cursor)
		}
		from, _ = slices.BinarySearchFunc(all, mark{at, id}, func(r api.RunRecord, m mark) int {
			if compareRuns(runMark(r), m) <= 0 {
				return -1
			}
			return 1
		})
	}
	lo, hi, err := q.Window(from, len(all))
	if err != nil {
		return out, err
	}
	out.Total = len(all)
	out.Runs = s.withLast(append(make([]api.RunRecord, 0, hi-lo), all[lo:hi]...))
	if hi < len(all) && hi > lo {
		m := runMark(all[hi-1])
		out.Next = fmt.Sprintf("%s/%s", strconv.FormatInt(m.nanos, 36), m.id)
	}
	return out, nil
}

// mark is a run's place in the order of lists.
type mark struct {
	nanos int64
	id    string
}

func runMark(r api.RunRecord) mark { return mark{r.LastRequest.UnixNano(), r.ID} }

func compareRuns(a, b mark) int {
	return cmp.Or(cmp.Compare(b.nanos, a.nanos), cmp.Compare(a.id, b.id))
}
