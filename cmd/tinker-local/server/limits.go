package server

import (
	"cmp"
	"time"
)

// Limits bound what clients may take. A zero field has the default named beside it.
//
// What is counted, in numbers or bytes, is shared fairly where there are several owners: see pool. Beyond these limits there are the engine's: of training
// runs and of samples, which are shared in the same way, and of the operations that wait in one run.
type Limits struct {
	// TrainingBody, PromptBody and SmallBody bound one body, unpacked, in bytes: of forward_backward, of asample, and of every
	// other request. Defaults 256 MiB, five times the chunk that clients are told to cut their calls into; 32 MiB, a prompt of a million
	// tokens; and 256 KiB, of which only a user's notes are more than a few lines.
	TrainingBody, PromptBody, SmallBody int64

	// Bodies and Answers bound the bytes of all bodies that are being read and decoded at one time, and of all results
	// that are being sent. Defaults 1 GiB: beyond it requests wait for one another, so that a flood costs time and no memory.
	Bodies, Answers int64

	// Held bounds the bytes that accepted requests hold: their input while they wait, what they may answer while they run, and what they
	// did answer as long as it is kept. Default 4 GiB. Beyond it clients are told to come again.
	Held int64

	// BodyTime bounds the sending of one body. Default 2 min: the largest one at 18 Mbit/s.
	BodyTime time.Duration

	// HeadTime bounds the sending of a request's headers, and what is taken in of a body that nobody reads because its request was
	// refused. Default 10 s.
	HeadTime time.Duration

	// AnswerTime is how long a client may take for each MiB of an answer. Default 30 s: 280 kbit/s.
	AnswerTime time.Duration

	// PollWait is how long retrieve_future waits for a result. Default 25 s: clients give up after 45.
	PollWait time.Duration

	// Announce is the size from which a result is announced to clients that allow it, before it is sent. Default 1 MiB.
	Announce int

	// Keep is how long a result stays after it has been fetched, in case the answer was lost on its way, and a sample's also when
	// nobody fetches it. Default 10 min: a client asks again within 75 s. When its owner has too many, it goes earlier.
	Keep time.Duration

	// Unclaimed is how long a result of training stays that nobody fetches. Default 1 h.
	Unclaimed time.Duration

	// SamplePatience is how long a sample goes on that nobody asks for. Default 2 min: a living client asks at least every 75 s.
	SamplePatience time.Duration

	// SessionIdle is how long a session without a heartbeat stays open. Default 1 h: a laptop may sleep over lunch.
	SessionIdle time.Duration

	// Sessions, Samplers and Ops bound what is open: sessions, sampling sessions, and requests whose results are waited for or
	// kept. Defaults 4096, 65536 and 262144.
	Sessions, Samplers, Ops int

	// Connections bounds those that are open, and with them the requests that are being answered. Default 8192: an SDK client has up to 1000.
	Connections int

	// Downloads is how many checkpoints may be under way to clients. Default 64: each keeps the store's files open.
	Downloads int

	// ArchiveLife is how long a download link works. Default 15 min.
	ArchiveLife time.Duration
}

// WithDefaults fills zero fields.
func (l Limits) WithDefaults() Limits {
	return Limits{
		TrainingBody:   cmp.Or(l.TrainingBody, 256<<20),
		PromptBody:     cmp.Or(l.PromptBody, 32<<20),
		SmallBody:      cmp.Or(l.SmallBody, 256<<10),
		Bodies:         cmp.Or(l.Bodies, 1<<30),
		Answers:        cmp.Or(l.Answers, 1<<30),
		Held:           cmp.Or(l.Held, 4<<30),
		BodyTime:       cmp.Or(l.BodyTime, 2*time.Minute),
		HeadTime:       cmp.Or(l.HeadTime, 10*time.Second),
		AnswerTime:     cmp.Or(l.AnswerTime, 30*time.Second),
		PollWait:       cmp.Or(l.PollWait, 25*time.Second),
		Announce:       cmp.Or(l.Announce, 1<<20),
		Keep:           cmp.Or(l.Keep, 10*time.Minute),
		Unclaimed:      cmp.Or(l.Unclaimed, time.Hour),
		SamplePatience: cmp.Or(l.SamplePatience, 2*time.Minute),
		SessionIdle:    cmp.Or(l.SessionIdle, time.Hour),
		Sessions:       cmp.Or(l.Sessions, 4096),
		Samplers:       cmp.Or(l.Samplers, 1<<16),
		Ops:            cmp.Or(l.Ops, 1<<18),
		Connections:    cmp.Or(l.Connections, 8192),
		Downloads:      cmp.Or(l.Downloads, 64),
		ArchiveLife:    cmp.Or(l.ArchiveLife, 15*time.Minute),
	}
}

// What clients are told about their forward_backward calls: they cut larger ones into pieces, and a loss over pairs or groups
// must not be cut. The bytes stay below what the SDK lets be under way at one time.
const (
	chunkDatums = 4096
	chunkBytes  = 48_000_000
)
