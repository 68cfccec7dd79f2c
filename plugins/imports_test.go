package plugins

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf16"
)

// asking is a guest that calls imports: code leaves an i32, which becomes the loss.
func asking(edit func(g *guest) []byte) *guest {
	g := newGuest(crossEntropyMeta)
	g.imp("loss_host", "log", i32+i32+i32, "")                           // 0
	g.imp("env", "abort", i32+i32+i32+i32, "")                           // 1
	g.imp("wasi_snapshot_preview1", "fd_write", i32+i32+i32+i32, i32)    // 2
	g.imp("wasi_snapshot_preview1", "random_get", i32+i32, i32)          // 3
	g.imp("wasi_snapshot_preview1", "clock_time_get", i32+i64+i32, i32)  // 4
	g.imp("wasi_snapshot_preview1", "args_sizes_get", i32+i32, i32)      // 5
	g.imp("wasi_snapshot_preview1", "environ_sizes_get", i32+i32, i32)   // 6
	g.imp("wasi_snapshot_preview1", "args_get", i32+i32, i32)            // 7
	g.imp("wasi_snapshot_preview1", "environ_get", i32+i32, i32)         // 8
	g.imp("wasi_snapshot_preview1", "sched_yield", "", i32)              // 9
	g.imp("wasi_snapshot_preview1", "poll_oneoff", i32+i32+i32+i32, i32) // 10
	code := edit(g)
	g.call = join(honest(), get(0), code, op(0xb7), mem(f64Store, offOutLoss), ic(0)) // f64.convert_i32_s
	g.locals = crossEntropy().locals
	return g
}

// TestStandIns: what a Go program's start asks of WASI is answered, the same in every instance.
func TestStandIns(t *testing.T) {
	h := openHost(t, Options{})
	load32 := func(at int) []byte { return join(ic(at), mem(i32Load, 0)) }
	for _, c := range []struct {
		name string
		want float64
		code []byte
	}{
		{"no arguments", 0, join(ic(256), ic(-1), mem(i32Store, 0), ic(256), ic(260), call1(5), load32(256), op(0x72), load32(260), op(0x72))},
		{"no environment", 0, join(ic(256), ic(260), call1(6), load32(256), op(0x72), load32(260), op(0x72))},
		{"nothing to fetch", 0, join(ic(256), ic(260), call1(7), ic(256), ic(260), call1(8), op(0x72))},
		{"pointers outside", 21 + 21<<8 + 21<<16, join(
			ic(-1), ic(0), call1(5), ic(-1), ic(8), call1(3), ic(8), op(i32Shl), op(0x72), ic(0), lc(1), ic(-8), call1(4), ic(16), op(i32Shl), op(0x72))},
		{"the third time", 3000, join(ic(0), lc(1), ic(256), call1(4), op(drop), ic(0), lc(1), ic(256), call1(4), op(drop), ic(0), lc(1), ic(256), call1(4), op(drop), load32(256))},
		{"random numbers", 1, join(ic(256), ic(8), call1(3), op(drop), ic(264), ic(8), call1(3), op(drop), load32(256), load32(264), op(0x47))},
		{"too many of them", 28, join(ic(0), ic(65537), call1(3))},
		{"another file", 8, join(ic(3), ic(256), ic(1), ic(300), call1(2))},
		{"too many vectors", 28, join(ic(1), ic(256), ic(1025), ic(300), call1(2))},
		{"vectors outside", 21, join(ic(1), ic(-8), ic(1), ic(300), call1(2))},
		{"yield", 0, call1(9)},
		{"poll", 7, join(ic(256), ic(300), ic(7), ic(400), call1(10), load32(400), op(0x72))},
	} {
		m := load(t, h, asking(func(*guest) []byte { return c.code }).build()) // equal bits twice: the self-test
		out, err := m.Loss().Eval(context.Background(), ordinary(t, m))
		if err != nil || out.Metrics["loss:sum"] != c.want {
			t.Errorf("%s: got %v, %v, wanted %v", c.name, out.Metrics["loss:sum"], err, c.want)
		}
	}
}

// TestGuestLog: lines arrive with their level, cleaned, bounded, and with the plugin's name.
func TestGuestLog(t *testing.T) {
	var buf bytes.Buffer
	h := openHost(t, Options{Log: slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	g := asking(func(g *guest) []byte {
		g.segment(256, []byte("hello\x07 there\nand \xff more"))
		g.segment(300, []byte("a line\nhalf "))
		g.segment(320, []byte("a line\n\nrest"))
		g.segment(340, join(op(0x2c, 1, 0, 0, 12, 0, 0, 0), op(0x40, 1, 0, 0, 12, 0, 0, 0)))
		return join(
			ic(2), ic(256), ic(23), call1(0), // a warning
			ic(99), ic(-5), ic(10), call1(0), // outside
			ic(1), ic(340), ic(2), ic(400), call1(2), op(drop), // two vectors
			ic(70), set(5), lop(ic(0), ic(1024), ic(1<<30), call1(0), get(5), ic(1), op(i32Sub), tee(5), brIf(0)), // too much
			ic(400), mem(i32Load, 0))
	})
	m := load(t, h, g.build())
	buf.Reset()
	out, err := m.Loss().Eval(context.Background(), ordinary(t, m))
	if err != nil || out.Metrics["loss:sum"] != 24 {
		t.Errorf("%v, %v", out.Metrics, err)
	}
	log := buf.String()
	by := fmt.Sprintf(" plugin=ce digest=%s\n", m.Digest()[:12])
	for _, want := range []string{
		`level=WARN msg="hello  there and ? more"` + by, `level=INFO msg="a line"` + by, `level=INFO msg="half a line"` + by, `level=INFO msg=rest` + by,
		`more lines were dropped"` + by,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in %s", want, clip(log, 1000))
		}
	}
	if n := strings.Count(log, "\n"); n > maxLogLines+1 || len(log) > maxLogBytes+maxLogLines*100 {
		t.Errorf("%d lines, %d bytes", n, len(log))
	}
}

// TestScriptAbort reads AssemblyScript's strings.
func TestScriptAbort(t *testing.T) {
	text := func(s string) []byte {
		u := utf16.Encode([]rune(s))
		b := []byte{byte(2 * len(u)), 0, 0, 0}
		for _, c := range u {
			b = append(b, byte(c), byte(c>>8))
		}
		return b
	}
	h := openHost(t, Options{})
	g := asking(func(g *guest) []byte {
		g.segment(256, text("größer als 1"))
		g.segment(400, text("loss.ts"))
		return join(ic(260), ic(404), ic(12), ic(7), call1(1), ic(0))
	})
	if _, err := h.Check(context.Background(), g.build()); err == nil || !strings.Contains(err.Error(), "it aborted: größer als 1, in loss.ts:12:7") {
		t.Error(err)
	}
	g = asking(func(*guest) []byte { return join(ic(0), ic(-1), ic(12), ic(7), call1(1), ic(0)) })
	if _, err := h.Check(context.Background(), g.build()); err == nil || !strings.Contains(err.Error(), "it aborted: (nothing), in (nothing):12:7") {
		t.Error(err)
	}
}
