// Package engine is the Go API of tinker-local, and the only thing its doors call: it loads base
// models, trains LoRA adapters on them and samples from them on one device.
//
// An [Engine] owns a device. A [Session] groups what one client opens. A [Run] is one adapter in
// training: its operations are queued, run in the order of the calls, and answer through a [Future]. A
// [Sampler] draws from a base model or from an immutable snapshot of an adapter. All methods are safe for
// concurrent use; none but Wait, Next and Close block on the device.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"sync"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/loss"
	"tinkerlocal/engine/model"
	"tinkerlocal/engine/queue"
	"tinkerlocal/engine/sample"
	"tinkerlocal/kernels"
)

// Models finds base models by name. The engine closes the checkpoints that it opens. Calls may come
// from any goroutine.
type Models interface {
	Open(name string) (*hf.Checkpoint, error)
	List() []string
}

// Losses finds losses by their wire name.
type Losses interface {
	Loss(name string) (loss.Loss, error)
}

type builtinLosses struct{}

func (builtinLosses) Loss(name string) (loss.Loss, error) { return loss.Builtin(name) }

// Options say what an engine works with. Device and Models are required.
type Options struct {
	Device kernels.Device // owned by the engine from a successful Open on: Close closes it
	Models Models
	Losses Losses // nil: the built-in losses. Owned by the engine as Device is, if it is an io.Closer
	// Checkpoints keeps what runs save. Owned by the engine as Device is. Nil: saving and loading by path are refused.
	Checkpoints api.Store
	// Shelf keeps weights of idle samplers when device memory is short. Owned by the engine as Device is. Nil: the host's memory does.
	Shelf  Shelf
	Limits Limits        // zero fields have defaults
	Store  kernels.DType // how base weights are kept, F32 or BF16; 0: as the checkpoint has them

	// Detokenizer reads a base model's tokenizer, once, when the base is loaded, and returns what makes a
	// decoder for each sampled sequence. Nil, or an error: requests with stop strings are refused.
	Detokenizer func(src *hf.Checkpoint) (func() sample.Detokenizer, error)

	// Progress is told how many parameters of a base model are loaded. It is called on the device's
	// goroutine and must not block. May be nil.
	Progress func(model string, done, total int64)

	Log  *slog.Logger     // nil: nothing is logged
	Seed func() int64     // seeds for requests without one; nil: the operating system's randomness
	Now  func() time.Time // nil: time.Now
}

// Engine owns one device and everything on it.
type Engine struct {
	dev    kernels.Device
	info   kernels.Info // as it was at Open
	opt    Options
	lim    Limits
	log    *slog.Logger
	ctx    context.Context // ends when Close is called
	stop   context.CancelFunc
	wake   chan struct{}
	exited chan struct{}
	evals  sync.WaitGroup // losses being evaluated off the device's goroutine

	mu       sync.Mutex // guards what follows, and the queues of runs and bases
	closed   bool
	lost     error // the device's fault, once it has failed
	jobs     []job
	turns    queue.Turns[*Run]
	share    queue.Share
	bases    map[string]*base
	sessions map[*Session]bool
	runs     int // open, or being opened
	opened   int // runs ever
	sampling int // requests that wait or run

	seen seen

	closeErr error // set before exited is closed

	used   int64 // bytes of bases, adapters, snapshots, pools and tapes; the device's goroutine only
	frames int64 // those of decode steps in it, which are set aside but not allocated all the time
	tapes  int   // tapes that operations keep between steps; the device's goroutine only

	helds []*Held // open, the oldest first; the device's goroutine only

	states map[*lora.State]bool // copies of adapters being saved; the device's goroutine only

	aside aside // samplers whose weights are; see idle.go
}

// Open starts an engine on a device. It returns at once; base models are loaded when they are first
// used. ctx bounds the opening, not the engine's life: call Close.
func Open(ctx context.Context, o Options) (*Engine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Device == nil {
		return nil, api.Errorf(api.BadRequest, "open engine: no device was given")
	}
	if o.Models == nil {
		return nil, api.Errorf(api.BadRequest, "open engine: no models were given")
	}
	if o.Losses == nil {
		o.Losses = builtinLosses{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Seed == nil {
		o.Seed = randomSeed
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	e := &Engine{
		dev: o.Device, info: o.Device.Info(), opt: o, lim: o.Limits.withDefaults(), log: o.Log,
		wake: make(chan struct{}, 1), exited: make(chan struct{}),
		aside: aside{pages: map[*Sampler]*page{}, waiting: map[*Sampler][]*request{}},
		bases: map[string]*base{}, sessions: map[*Session]bool{}, states: map[*lora.State]bool{},
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	go e.loop()
	e.log.Info("engine open", "device", e.info.Name, "variant", e.info.Variant, "free_bytes", e.info.Free)
	return e, nil
}

func randomSeed() int64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return int64(binary.LittleEndian.Uint64(b[:]) >> 1)
}

// Close ends everything: operations that wait or are under way fail with api.Closed, all device memory
// is freed, the device is closed. It blocks until then and returns the device's error; closing twice does nothing.
func (e *Engine) Close() error {
	e.stop() // first: who sees closed may rely on it
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.signal()
	<-e.exited
	return e.closeErr
}

// Device describes the device as it was at Open.
func (e *Engine) Device() kernels.Info { return e.info }

// Limits are the limits in force, defaults filled in.
func (e *Engine) Limits() Limits { return e.lim }

// Counters tells, for each loaded base model, how many multiply-adds with its weights have been computed since it was loaded.
func (e *Engine) Counters() map[string]model.Counters {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[string]model.Counters, len(e.bases))
	for name, b := range e.bases {
		out[name] = b.model.Counters()
	}
	return out
}

// Models lists the names of the base models that can be opened.
func (e *Engine) Models() []string { return e.opt.Models.List() }

// Checkpoints is the store of what runs save, or nil.
func (e *Engine) Checkpoints() api.Store { return e.opt.Checkpoints }

// NewSession makes an empty session of LocalOwner. It does not block.
func (e *Engine) NewSession() *Session { return e.NewSessionFor(LocalOwner) }

// LocalOwner owns what sessions without another owner save.
const LocalOwner = "local"

// NewSessionFor makes an empty session. owner owns the checkpoints that its runs save, and is who reads others'. It does
// not block.
func (e *Engine) NewSessionFor(owner string) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newSession(owner, newID(e.opt.Seed()))
}

// NewSessionAs is NewSessionFor with an id of the caller's, for doors whose clients keep theirs over a restart. The id begins
// the ids of the session's runs; it is refused when an open session has it.
func (e *Engine) NewSessionAs(owner, id string) (*Session, error) {
	if err := api.CheckName("session id", id); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, err
	}
	for s := range e.sessions {
		if s.id == id {
			return nil, api.Errorf(api.BadRequest, "session %s is open already", id)
		}
	}
	return e.newSession(owner, id), nil
}

// newSession adds a session. e.mu is held.
func (e *Engine) newSession(owner, id string) *Session {
	s := &Session{e: e, owner: owner, id: id, runs: map[*Run]bool{}, samplers: map[*Sampler]bool{}, closing: map[*Sampler]bool{}, opened: e.opt.Now()}
	s.ctx, s.stop = context.WithCancelCause(e.ctx)
	s.numbers.used = map[int64]numberedRun{}
	e.sessions[s] = true
	return s
}

// usable says why the engine takes no work, or nil. e.mu is held.
func (e *Engine) usable() error {
	switch {
	case e.closed:
		return errClosed
	case e.lost != nil:
		return deviceLost(e.lost)
	}
	return nil
}
