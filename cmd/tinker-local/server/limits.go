package server

import (
	"cmp"
	"time"
)

// Limits bound what clients may take. A zero field has the default named beside it.
type Limits struct {
	// TrainingBody and Body bound the body of a forward_backward and of every other request, unpacked, in bytes. Defaults
	// 256 MiB, five times the chunk that clients are told to cut their calls into, and 32 MiB: a prompt of a million tokens.
	TrainingBody, Body int64

	// Bodies bounds the bytes of all bodies that are being read and decoded at one time. Default 1 GiB: beyond it
	// requests wait for one another, so that a flood costs time and no memory.
	Bodies int64

	// BodyTime bounds the sending of one body. Default 2 min: the largest one at 18 Mbit/s.
	BodyTime time.Duration

	// PollWait is how long retrieve_future waits for a result. Default 25 s: clients give up after 45.
	PollWait time.Duration

	// Announce is the size from which a result is announced to clients that allow it, before it is sent. Default 1 MiB.
	Announce int

	// Keep is how long a result stays after it has been fetched, in case the answer was lost on its way. Default 10 min:
	// a client asks again within 75 s.
	Keep time.Duration

	// Unclaimed is how long a result stays that nobody fetches. Default 1 h.
	Unclaimed time.Duration

	// SamplePatience is how long a sample goes on that nobody asks for. Default 2 min: a living client asks at least every 75 s.
	SamplePatience time.Duration

	// SessionIdle is how long a session without a heartbeat stays open. Default 1 h: a laptop may sleep over lunch.
	SessionIdle time.Duration

	// Sessions, Ops and Samplers bound what is open: sessions of all owners, results that wait or are kept, and the
	// sampling sessions of one session. Defaults 4096, 262144 and 4096.
	Sessions, Ops, Samplers int

	// ArchiveLife is how long a download link works. Default 15 min.
	ArchiveLife time.Duration
}

func (l Limits) withDefaults() Limits {
	return Limits{
		TrainingBody:   cmp.Or(l.TrainingBody, 256<<20),
		Body:           cmp.Or(l.Body, 32<<20),
		Bodies:         cmp.Or(l.Bodies, 1<<30),
		BodyTime:       cmp.Or(l.BodyTime, 2*time.Minute),
		PollWait:       cmp.Or(l.PollWait, 25*time.Second),
		Announce:       cmp.Or(l.Announce, 1<<20),
		Keep:           cmp.Or(l.Keep, 10*time.Minute),
		Unclaimed:      cmp.Or(l.Unclaimed, time.Hour),
		SamplePatience: cmp.Or(l.SamplePatience, 2*time.Minute),
		SessionIdle:    cmp.Or(l.SessionIdle, time.Hour),
		Sessions:       cmp.Or(l.Sessions, 4096),
		Ops:            cmp.Or(l.Ops, 1<<18),
		Samplers:       cmp.Or(l.Samplers, 4096),
		ArchiveLife:    cmp.Or(l.ArchiveLife, 15*time.Minute),
	}
}

// What clients are told about their forward_backward calls: they cut larger ones into pieces, and a loss over pairs or groups
// must not be cut. The bytes stay below what the SDK lets be under way at one time.
const (
	chunkDatums = 4096
	chunkBytes  = 48_000_000
)
