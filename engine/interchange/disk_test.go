package interchange

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
)

// brokenDisk is a real disk whose call number at fails, or that flips a bit of what is written in that call.
type brokenDisk struct {
	disk.System
	at, calls int
	flip      bool
	what      string
	cancel    func()
}

func (d *brokenDisk) step(what string) error {
	d.calls++
	if d.calls != d.at {
		return nil
	}
	d.what = what
	if d.cancel != nil {
		d.cancel()
		return nil
	}
	if d.flip {
		return nil
	}
	return &fs.PathError{Op: what, Path: "somewhere", Err: syscall.ENOSPC}
}

func (d *brokenDisk) Mkdir(name string) error {
	if err := d.step("mkdir"); err != nil {
		return err
	}
	return d.System.Mkdir(name)
}

func (d *brokenDisk) Rename(from, to string) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	return d.System.Rename(from, to)
}

func (d *brokenDisk) Create(name string) (disk.File, error) {
	if err := d.step("create"); err != nil {
		return nil, err
	}
	f, err := d.System.Create(name)
	return brokenFile{f, d}, err
}

type brokenFile struct {
	disk.File
	d *brokenDisk
}

func (f brokenFile) Write(b []byte) (int, error) {
	if err := f.d.step("write"); err != nil {
		return 0, err
	}
	if f.d.flip && f.d.calls == f.d.at {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 0x10
	}
	return f.File.Write(b)
}

func (f brokenFile) Sync() error {
	if err := f.d.step("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

// holdsOnDisk makes every call to the disk fail in turn, damages what is written, and cancels at every call: the disk stays as it was.
func holdsOnDisk(t *testing.T, x *Export, name string) {
	t.Helper()
	for _, mode := range []string{"fail", "flip", "cancel"} {
		for at := 1; ; at++ {
			dir := t.TempDir()
			ctx, cancel := context.WithCancel(context.Background())
			d := &brokenDisk{at: at, flip: mode == "flip"}
			if mode == "cancel" {
				d.cancel = cancel
			}
			err := x.Write(ctx, filepath.Join(dir, "new", name), WriteOptions{disk: d})
			cancel()
			if d.calls < at {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			left := files(t, dir)
			switch {
			case mode == "flip" && d.what != "write" || mode == "cancel" && d.what == "rename":
				continue // nothing was damaged; it was too late
			case err == nil:
				t.Errorf("%s at call %d (%s): no error", mode, at, d.what)
			case mode == "fail" && (api.CodeOf(err) != api.NoSpace || !errors.Is(err, syscall.ENOSPC)),
				mode == "cancel" && (api.CodeOf(err) != api.Cancelled || !errors.Is(err, context.Canceled)):
				t.Errorf("%s at call %d (%s): %v (%v)", mode, at, d.what, err, api.CodeOf(err))
			case len(left) != 0:
				t.Errorf("%s at call %d (%s): %v is left", mode, at, d.what, maps.Keys(left))
			}
		}
	}
}

// TestCancelledArchive: a stream ends when it is cancelled, and says so; a writer's error comes through.
func TestCancelledArchive(t *testing.T) {
	st := memory(t)
	sites := sitesOf(t, experts)
	c := saved(t, st, sites, state("run-1", seeded(3, true, false, true)))
	r := opened(t, st, c.Path)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	expect(t, "write", WriteArchive(ctx, io.Discard, r, ArchiveOptions{}), api.Cancelled, "context canceled")
	b := archiveOf(t, st, c.Path, ArchiveOptions{})
	temp := t.TempDir()
	_, err := ReadArchive(ctx, bytes.NewReader(b), ReadOptions{Temp: temp})
	expect(t, "read", err, api.Cancelled, "context canceled")
	if left := files(t, temp); len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
	broken := io.MultiReader(bytes.NewReader(b[:1000]), iotest.ErrReader(os.ErrDeadlineExceeded))
	if _, err = ReadArchive(context.Background(), broken, ReadOptions{Temp: temp}); !errors.Is(err, os.ErrDeadlineExceeded) || len(files(t, temp)) != 0 {
		t.Errorf("the stream breaks: %v", err)
	}
	_, err = ReadArchive(context.Background(), bytes.NewReader(b), ReadOptions{Temp: filepath.Join(temp, "none")})
	expect(t, "nowhere to keep it", err, api.NotFound, "archive: no such file")
	src, err := ReadArchive(context.Background(), bytes.NewReader(b), ReadOptions{Temp: temp})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	to := api.Checkpoint{Path: api.Path{Run: "r", Kind: api.KindSampler, Name: "n"}, Owner: "me"}
	_, err = Import(ctx, src, sites, st, to, ImportOptions{})
	expect(t, "import", err, api.Cancelled, "context canceled")
	if _, err := st.Info(context.Background(), to.Path); api.CodeOf(err) != api.NotFound {
		t.Errorf("a cancelled import left %v", err)
	}
	pr, pw := io.Pipe()
	pr.CloseWithError(os.ErrClosed)
	if err := WriteArchive(context.Background(), pw, r, ArchiveOptions{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the reader went away: %v", err)
	}
}
