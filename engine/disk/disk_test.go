package disk_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := disk.System{}.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestWriteFile: a file is there whole under its name, or the folder is as it was.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "new", "a.tar")
	checked := ""
	check := func(staged string) error {
		b, err := os.ReadFile(staged)
		checked = string(b)
		return err
	}
	if err := disk.WriteFile(disk.System{}, name, false, text("one"), check); err != nil || checked != "one" {
		t.Fatalf("%v, checked %q", err, checked)
	}
	boom := errors.New("boom")
	for _, c := range []struct {
		what    string
		name    string
		replace bool
		write   func(io.Writer) error
		check   func(string) error
		want    string
	}{
		{"exists", name, false, text("two"), nil, "it is there already"},
		{"writing fails", name, true, func(io.Writer) error { return boom }, nil, "boom"},
		{"checking fails", name, true, text("two"), func(string) error { return boom }, "boom"},
		{"folder", filepath.Dir(name), true, text("two"), nil, "it is a folder, wanted the name of a file"},
		{"new parent", filepath.Join(dir, "x", "y", "a"), true, text("two"), func(string) error { return boom }, "boom"},
	} {
		if err := disk.WriteFile(disk.System{}, c.name, c.replace, c.write, c.check); err == nil || err.Error() != c.want {
			t.Errorf("%s: error is %v, want %s", c.what, err, c.want)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"new"}) {
			t.Errorf("%s: %v is left", c.what, got)
		}
		if got := names(t, filepath.Dir(name)); !slices.Equal(got, []string{"a.tar"}) {
			t.Errorf("%s: %v is left", c.what, got)
		}
		if b, _ := os.ReadFile(name); string(b) != "one" {
			t.Errorf("%s: the file is %q now", c.what, b)
		}
	}
	if err := disk.WriteFile(disk.System{}, name, true, text("two"), nil); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(name); string(b) != "two" {
		t.Errorf("replaced by %q", b)
	}
}

// TestRoom: more than there is is refused with numbers, for a folder that is yet to be made, too.
func TestRoom(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	if err := disk.Room(dir, 1, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Free(os.TempDir()); err != nil {
		t.Skip("free space is not known here: ", err)
	}
	err := disk.Room(dir, 1<<60, 5e6)
	if api.CodeOf(err) != api.NoSpace || !strings.Contains(err.Error(), "has too little space: 1152921504611846976 bytes needed, ") {
		t.Errorf("error is %v", err)
	}
}

// TestLock: what one holder has, another is refused, until it is given back.
func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	unlock, err := disk.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Lock(name); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("second holder: %v", err)
	}
	unlock()
	again, err := disk.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// TestError: codes of what a file system says.
func TestError(t *testing.T) {
	_, missing := os.Open(filepath.Join(t.TempDir(), "x"))
	full := &os.PathError{Op: "write", Path: "secret", Err: syscall.ENOSPC}
	for _, c := range []struct {
		err  error
		code api.Code
	}{{missing, api.NotFound}, {full, api.NoSpace}, {errors.New("x"), api.BadRequest}, {api.Errorf(api.Busy, "x"), api.Busy}} {
		if got := disk.Error(c.err); api.CodeOf(got) != c.code || strings.Contains(got.Error(), "secret") {
			t.Errorf("%v: %v (%v)", c.err, got, api.CodeOf(got))
		}
	}
	if disk.Error(nil) != nil {
		t.Error("nil became an error")
	}
}
