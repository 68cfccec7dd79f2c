package engine

// Accounts are what the engine believes to have on its device. For tests.
type Accounts struct {
	Used, Frames int64
	Tapes, Holds int
	Aside        int // samplers whose weights are not on the device
	InMemory     int // copies of weights that are not on the shelf
}

// Accounts reads them on the device's goroutine.
func (s *Session) Accounts() (*Future[Accounts], error) {
	e := s.e
	return submitJob(s, "accounts", func() (Accounts, error) {
		aside, inMemory := 0, 0
		e.mu.Lock()
		defer e.mu.Unlock()
		for p, pg := range e.aside.pages {
			if p.away {
				aside++
			}
			if pg.host != nil {
				inMemory++
			}
		}
		return Accounts{e.used, e.frames, e.tapes, len(e.helds), aside, inMemory}, nil
	})
}
