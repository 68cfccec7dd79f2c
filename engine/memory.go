package engine

import (
	"math"
	"slices"

	"tinkerlocal/engine/api"
)

// Device memory: how much of it may be taken, and what is given back when that is too little.

// room is how many bytes the engine may still take for b's work: what its limit and the device leave, and the
// buffer that the base keeps between batches. It is math.MaxInt64 when nobody knows. b may be nil.
func (e *Engine) room(b *base) int64 {
	room := int64(math.MaxInt64)
	spare := int64(0)
	if b != nil {
		spare = b.model.SpareBytes()
	}
	if free := e.dev.Info().Free; free > 0 {
		room = max(0, free-free/8+spare-e.frames) // an eighth is for everybody else
	}
	if e.lim.Memory > 0 {
		room = min(room, max(0, e.lim.Memory-e.used))
	}
	return room
}

// need makes room for work that takes so many bytes, or refuses it.
func (e *Engine) need(what string, bytes int64, b *base) error {
	if room := e.makeRoom(b, bytes); bytes > room {
		return api.Errorf(api.OutOfMemory, "%s needs %d bytes of device memory, %d are free", what, bytes, room)
	}
	return nil
}

// makeRoom gives up what can be made again until bytes fit for b's work, or nothing is left: first what nobody misses, that is what forwards
// keep for a backward that may never come, buffers that other bases keep for their next batch, and key/value pools without a sampler; then weights of samplers that nobody draws from, which are brought back
// when somebody does; then tapes of holds, the oldest first, which are a forward each; then bases that nobody uses, which are a load each. It returns the room there is then.
func (e *Engine) makeRoom(b *base, bytes int64) int64 {
	e.trim(b, bytes)
	room := e.setAside(b, bytes)
	for _, h := range e.helds {
		if bytes <= room {
			return room
		}
		if h.evict() {
			room = e.room(b)
		}
	}
	return e.unload(b, bytes)
}

// trim gives up what nobody misses.
func (e *Engine) trim(b *base, bytes int64) int64 {
	room := e.room(b)
	for _, h := range slices.Clone(e.helds) {
		if bytes <= room {
			return room
		}
		if h.isGuess() {
			e.forget(h)
			h.run.base.model.Trim()
			room = e.room(b)
		}
	}
	for _, name := range sortedNames(e.bases) {
		if bytes <= room {
			break
		}
		x := e.bases[name]
		if x != b && x.model.SpareBytes() > 0 {
			x.model.Trim()
			room = e.room(b)
		}
		if bytes > room && x.batch != nil && x.samplers == 0 {
			x.closeBatch()
			e.log.Info("key/value pool freed: the memory is needed", "model", name)
			room = e.room(b)
		}
	}
	return room
}

// unload sets weights of idle samplers aside and gives up bases that nobody uses, too: the one that was used longest ago first, and no more than needed.
func (e *Engine) unload(b *base, bytes int64) int64 {
	e.trim(b, bytes)
	room := e.setAside(b, bytes)
	for bytes > room {
		x := e.idlest(b)
		if x == nil {
			break
		}
		e.log.Info("base unloaded: the memory is needed", "model", x.info.Name, "idle", e.opt.Now().Sub(x.used), "wanted_bytes", bytes, "free_bytes", room)
		e.freeBase(x)
		room = e.room(b)
	}
	return room
}

// idlest is the base other than b that nobody uses, and nobody used for the longest time; or nil.
func (e *Engine) idlest(b *base) (x *base) {
	for _, name := range sortedNames(e.bases) {
		if y := e.bases[name]; y != b && y.refs == 0 && (x == nil || y.used.Before(x.used)) {
			x = y
		}
	}
	return x
}

// idleBytes is about what unload can give.
func (e *Engine) idleBytes(b *base) (n int64) {
	n = e.guessBytes()
	for _, p := range e.idleSamplers() {
		n += p.snap.Bytes()
	}
	for _, x := range e.bases {
		if x.batch != nil && x.samplers == 0 {
			n += x.kvBytes
		}
		if x != b && x.refs == 0 {
			n += x.info.Bytes
		}
	}
	return n
}
