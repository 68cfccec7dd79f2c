package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/hub"
)

// pullBars draws a download on a terminal: a line for each file that is coming in, and one for the whole.
// On anything else it says only what makes a download wait.
type pullBars struct {
	w        io.Writer
	now      func() time.Time
	draws    bool
	perFile  bool // several lines need the terminal to move its cursor up
	total    int64
	done     map[string]int64
	active   []hub.Event // the latest event of each file that is coming in, in the order of their beginnings
	received int64
	started  time.Time
	drawn    time.Time
	lines    int // on the screen
}

func newPullBars(w io.Writer, now func() time.Time) *pullBars {
	return &pullBars{w: w, now: now, draws: terminal(w), perFile: runtime.GOOS != "windows", total: -1, done: map[string]int64{}, started: now()}
}

// event is hub's report function.
func (b *pullBars) event(e hub.Event) {
	i := slices.IndexFunc(b.active, func(x hub.Event) bool { return x.File == e.File })
	switch e.Kind {
	case hub.Planned:
		b.total = e.Size
	case hub.Retrying:
		b.clear()
		if e.Wait > 0 {
			fmt.Fprintf(b.w, "%v; again in %s\n", e.Err, e.Wait.Round(100*time.Millisecond))
		} else {
			fmt.Fprintf(b.w, "%v; once more\n", e.Err)
		}
	case hub.Advanced:
		if old, ok := b.done[e.File]; ok && e.Done > old {
			b.received += e.Done - old
		}
		b.done[e.File] = e.Done
		if i < 0 {
			b.active = append(b.active, e)
		} else {
			b.active[i] = e
		}
	case hub.Completed:
		b.done[e.File] = e.Done
		if i >= 0 {
			b.active = slices.Delete(b.active, i, i+1)
		}
	}
	if now := b.now(); b.draws && now.Sub(b.drawn) >= 80*time.Millisecond {
		b.drawn = now
		b.draw()
	}
}

// draw replaces the lines on the screen.
func (b *pullBars) draw() {
	var sum int64
	for _, n := range b.done {
		sum += n
	}
	var s strings.Builder
	if b.lines > 1 {
		fmt.Fprintf(&s, "\x1b[%dA", b.lines-1)
	}
	b.lines = 1
	if b.perFile {
		for _, e := range b.active {
			fmt.Fprintf(&s, "\r%s\x1b[K\n", barLine(e.File, e.Done, e.Size, bytesText(max(e.Done, e.Size))))
			b.lines++
		}
	}
	speed := ""
	if seconds := b.now().Sub(b.started).Seconds(); seconds > 1 && b.received > 0 {
		rate := float64(b.received) / seconds
		speed = bytesText(int64(rate)) + "/s"
		if left := b.total - sum; left > 0 {
			speed += " " + (time.Duration(float64(left)/rate) * time.Second).String()
		}
	}
	if b.perFile {
		s.WriteString("\r" + barLine("total", sum, b.total, speed) + "\x1b[K\x1b[J")
	} else {
		fmt.Fprintf(&s, "\r%-79s", barLine("total", sum, b.total, speed))
	}
	_, _ = io.WriteString(b.w, s.String())
}

// clear takes the lines off the screen.
func (b *pullBars) clear() {
	switch {
	case b.lines == 0:
	case b.perFile:
		if b.lines > 1 {
			fmt.Fprintf(b.w, "\x1b[%dA", b.lines-1)
		}
		fmt.Fprint(b.w, "\r\x1b[J")
	default:
		fmt.Fprintf(b.w, "\r%79s\r", "")
	}
	b.lines, b.drawn = 0, time.Time{}
}

func (b *pullBars) end() { b.clear() }

// barLine is one line of at most 79 columns.
func barLine(name string, done, size int64, after string) string {
	const cells = 20
	if r := []rune(name); len(r) > 28 { // the end of a shard's name tells it apart
		name = "…" + string(r[len(r)-27:])
	}
	percent, full := "   ?", 0
	if size > 0 {
		done = min(done, size)
		percent = fmt.Sprintf("%3.0f%%", 100*float64(done)/float64(size))
		full = int(cells * float64(done) / float64(size))
	}
	line := fmt.Sprintf("%-28s %s [%s%s] %s", name, percent, strings.Repeat("=", full), strings.Repeat(" ", cells-full), after)
	if r := []rune(line); len(r) > 79 {
		line = string(r[:79])
	}
	return line
}
