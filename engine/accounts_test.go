package engine

// Accounts are what the engine believes to have on its device. For tests.
type Accounts struct {
	Used, Frames int64
	Tapes, Holds int
}

// Accounts reads them on the device's goroutine.
func (s *Session) Accounts() (*Future[Accounts], error) {
	e := s.e
	return submitJob(s, "accounts", func() (Accounts, error) {
		return Accounts{e.used, e.frames, e.tapes, len(e.helds)}, nil
	})
}
