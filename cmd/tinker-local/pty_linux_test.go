package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"tinkerlocal/engine/chat"
)

// pty opens a pseudo-terminal: what is written to the master is typed on the slave.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// TestChatTerminal: on a terminal lines are edited, the arrow brings the last one back, ctrl-D ends the talk, and the
// terminal is left as it was.
func TestChatTerminal(t *testing.T) {
	master, slave := pty(t)
	before, err := term.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	shown := &syncBuffer{}
	go func() { // ends when the master is closed
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			shown.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	k, _, _ := newTalk(t)
	k.out = slave
	k.format, _ = chat.ByName("qwen3_instruct")
	lines, interactive := newLineReader(slave, slave)
	if !interactive {
		t.Fatal("a pseudo-terminal is not taken for one")
	}
	done := make(chan error, 1)
	go func() { done <- k.run(t.Context(), lines) }()
	from := 0 // what was shown before is done with
	type step struct{ wait, send string }
	for i, s := range []step{
		{"> ", "/adaptex\x7fr\r"}, // a mistake, taken back
		{"without an adapter\r\n", ""},
		{"> ", "\x1b[A\r"}, // arrow up: the line before
		{"without an adapter\r\n", ""},
		{"> ", "\x04"},
	} {
		deadline := time.Now().Add(20 * time.Second)
		for !strings.Contains(shown.String()[from:], s.wait) {
			if time.Now().After(deadline) {
				t.Fatalf("step %d: no %q in %q", i, s.wait, shown.String()[from:])
			}
			time.Sleep(5 * time.Millisecond)
		}
		from += strings.Index(shown.String()[from:], s.wait) + len(s.wait)
		if _, err := master.WriteString(s.send); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("ctrl-D did not end the talk: %q", shown.String())
	}
	lines.close()
	after, err := term.GetState(int(slave.Fd()))
	if err != nil || fmt.Sprint(*after) != fmt.Sprint(*before) {
		t.Errorf("the terminal was %v and is %v, %v", before, after, err)
	}
	if got := strings.Count(shown.String(), "without an adapter"); got != 2 {
		t.Errorf("answered %d times: %q", got, shown.String())
	}
}
