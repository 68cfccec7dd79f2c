package plugins

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/tetratelabs/wazero"
	wasm "github.com/tetratelabs/wazero/api"
)

type hostFunction struct {
	signature
	run wasm.GoModuleFunc
}

// WASI error numbers.
const (
	errnoSuccess = 0
	errnoBadF    = 8
	errnoFault   = 21
	errnoInval   = 28
)

// hostFunctions are all that a guest may import. Those of WASI are what a Go program's start needs; they answer the same in every call.
var hostFunctions = map[string]map[string]hostFunction{
	"loss_host": {
		"log":   {signature{i32 + i32 + i32, ""}, hostLog},
		"abort": {signature{i32 + i32, ""}, hostAbort},
	},
	"env": {
		"abort": {signature{i32 + i32 + i32 + i32, ""}, scriptAbort},
	},
	"wasi_snapshot_preview1": {
		"args_get":          {signature{i32 + i32, i32}, success},
		"args_sizes_get":    {signature{i32 + i32, i32}, noStrings},
		"environ_get":       {signature{i32 + i32, i32}, success},
		"environ_sizes_get": {signature{i32 + i32, i32}, noStrings},
		"clock_time_get":    {signature{i32 + i64 + i32, i32}, clockTime},
		"random_get":        {signature{i32 + i32, i32}, randomBytes},
		"fd_write":          {signature{i32 + i32 + i32 + i32, i32}, fdWrite},
		"sched_yield":       {signature{"", i32}, success},
		"poll_oneoff":       {signature{i32 + i32 + i32 + i32, i32}, pollOneoff},
		"proc_exit":         {signature{i32, ""}, procExit},
	},
}

// instantiateHost puts the host's functions and the meter into a runtime.
func instantiateHost(ctx context.Context, rt wazero.Runtime) error {
	all := maps.Clone(hostFunctions)
	all[meterModule] = map[string]hostFunction{meterName: {meterType, meter}}
	for _, module := range sortedNames(all) {
		b := rt.NewHostModuleBuilder(module)
		for _, name := range sortedNames(all[module]) {
			f := all[module][name]
			run := f.run
			if module != meterModule {
				run = paid(run)
			}
			b.NewFunctionBuilder().WithGoModuleFunction(run, valueTypes(f.params), valueTypes(f.results)).Export(name)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("module %s: %w", module, err)
		}
	}
	return nil
}

// paid takes fuel for leaving native code, whether the guest called by name or through a table.
func paid(run wasm.GoModuleFunc) wasm.GoModuleFunc {
	return func(ctx context.Context, m wasm.Module, stack []uint64) {
		callOf(ctx).spend(ctx, costImport)
		run(ctx, m, stack)
	}
}

func valueTypes(s string) []wasm.ValueType { return []wasm.ValueType(s) }

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// guestBytes is a view of guest memory, clipped to most bytes.
func guestBytes(m wasm.Module, ptr, n uint64, most int) []byte {
	b, _ := m.Memory().Read(uint32(ptr), uint32(min(n, uint64(most))))
	return b
}

func hostLog(ctx context.Context, m wasm.Module, stack []uint64) {
	c := callOf(ctx)
	c.spend(ctx, maxLogLine)
	c.log.add(int(min(max(int32(stack[0]), 0), 3)), guestBytes(m, stack[1], stack[2], maxLogLine))
}

func hostAbort(ctx context.Context, m wasm.Module, stack []uint64) {
	text := cleanText(guestBytes(m, stack[0], stack[1], maxErrorText))
	callOf(ctx).stop(fmt.Errorf("it aborted: %s", text))
}

// scriptAbort is AssemblyScript's: message and file are pointers to UTF-16 strings with their size in bytes in front, then line and column.
func scriptAbort(ctx context.Context, m wasm.Module, stack []uint64) {
	text := func(ptr uint64) string {
		size, ok := m.Memory().ReadUint32Le(uint32(ptr) - 4)
		if !ok || ptr < 4 {
			return "(nothing)"
		}
		raw := guestBytes(m, ptr, uint64(size), 2*maxLogLine)
		var s []rune
		for i := 0; i+1 < len(raw); i += 2 {
			s = append(s, rune(binary.LittleEndian.Uint16(raw[i:])))
		}
		return cleanText([]byte(string(s)))
	}
	callOf(ctx).stop(fmt.Errorf("it aborted: %s, in %s:%d:%d", text(stack[0]), text(stack[1]), uint32(stack[2]), uint32(stack[3])))
}

func success(_ context.Context, _ wasm.Module, stack []uint64) { stack[0] = errnoSuccess }

// noStrings says that there are none, of no bytes.
func noStrings(_ context.Context, m wasm.Module, stack []uint64) {
	ok := m.Memory().WriteUint32Le(uint32(stack[0]), 0) && m.Memory().WriteUint32Le(uint32(stack[1]), 0)
	stack[0] = errno(ok)
}

func errno(ok bool) uint64 {
	if ok {
		return errnoSuccess
	}
	return errnoFault
}

// clockTime counts reads, a microsecond each.
func clockTime(ctx context.Context, m wasm.Module, stack []uint64) {
	c := callOf(ctx)
	c.clock += 1000
	stack[0] = errno(m.Memory().WriteUint64Le(uint32(stack[2]), c.clock))
}

// randomBytes are those of a fixed seed. (SplitMix64, Steele et al. 2014.)
func randomBytes(ctx context.Context, m wasm.Module, stack []uint64) {
	c := callOf(ctx)
	if stack[1] > 64<<10 {
		stack[0] = errnoInval
		return
	}
	c.spend(ctx, stack[1])
	b, ok := m.Memory().Read(uint32(stack[0]), uint32(stack[1]))
	for i := 0; i < len(b); i += 8 {
		c.random += 0x9e3779b97f4a7c15
		z := c.random
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], z^z>>31)
		copy(b[i:], word[:])
	}
	stack[0] = errno(ok)
}

// fdWrite takes standard output and error into the log.
func fdWrite(ctx context.Context, m wasm.Module, stack []uint64) {
	fd, vectors, n, written := stack[0], uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	if fd != 1 && fd != 2 {
		stack[0] = errnoBadF
		return
	}
	if n > 1024 {
		stack[0] = errnoInval
		return
	}
	c := callOf(ctx)
	list, ok := m.Memory().Read(vectors, 8*n)
	total := uint32(0)
	for i := 0; ok && i < len(list); i += 8 {
		ptr, size := binary.LittleEndian.Uint32(list[i:]), binary.LittleEndian.Uint32(list[i+4:])
		if _, ok = m.Memory().Read(ptr, size); ok {
			text := guestBytes(m, uint64(ptr), uint64(size), maxLogBytes)
			c.spend(ctx, uint64(len(text))+16)
			c.log.write(text)
			total += size
		}
	}
	stack[0] = errno(ok && m.Memory().WriteUint32Le(written, total))
}

// pollOneoff has waited already, for everything.
func pollOneoff(_ context.Context, m wasm.Module, stack []uint64) {
	stack[0] = errno(m.Memory().WriteUint32Le(uint32(stack[3]), uint32(stack[2])))
}

func procExit(ctx context.Context, _ wasm.Module, stack []uint64) {
	callOf(ctx).stop(fmt.Errorf("it exited with code %d", int32(stack[0])))
}

// logLines are bounded: what is beyond is dropped and counted.
type logLines struct {
	lines   []logLine
	bytes   int
	dropped int
	partial []byte // of fd_write
}

type logLine struct {
	level int
	text  string
}

func (l *logLines) add(level int, text []byte) {
	text = text[:min(len(text), maxLogLine)]
	if len(l.lines) >= maxLogLines || l.bytes+len(text) > maxLogBytes {
		l.dropped++
		return
	}
	l.bytes += len(text)
	l.lines = append(l.lines, logLine{level, cleanText(text)})
}

// write takes whole lines; the rest waits for the next write or for flush.
func (l *logLines) write(b []byte) {
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if room := maxLogLine - len(l.partial); len(line) > room {
			line = line[:room]
		}
		l.partial = append(l.partial, line...)
		if !whole {
			return
		}
		l.flush()
		b = rest
	}
}

func (l *logLines) flush() {
	if len(l.partial) > 0 {
		l.add(1, l.partial)
		l.partial = l.partial[:0]
	}
}
