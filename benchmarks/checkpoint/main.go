// Command checkpoint times saving and loading of a training state of 1.1 GB (rank 32 on Qwen3-8B, with Adam's moments) for checkpoint.py:
// one line of standard input after the other, "save store", "again store", "load store", "save plain" or "load plain", is answered with
// seconds and bytes. Everything that is saved is synced to the disk before the time is taken.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/store"
	"tinkerlocal/store/storetest"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "checkpoint:", err)
		os.Exit(1)
	}
}

// bench holds what is saved, and where.
type bench struct {
	dir   string
	blobs []storetest.Blob
	bytes int64
	store *store.Store
	saves int
	path  api.Path
	buf   []byte
}

type answer struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"` // written, or read
}

func serve() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("wanted: checkpoint FOLDER RANK")
	}
	rank, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	b := &bench{dir: os.Args[1]}
	b.blobs, b.bytes = storetest.State8B(rank)
	largest := 0
	for _, x := range b.blobs {
		largest = max(largest, len(x.Data))
	}
	b.buf = make([]byte, largest)
	commands := map[string]func() (answer, error){
		"save store": b.saveStore, "again store": b.saveAgain, "load store": b.loadStore, "save plain": b.savePlain, "load plain": b.loadPlain,
	}
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		do, ok := commands[strings.TrimSpace(lines.Text())]
		if !ok {
			return fmt.Errorf("%q: no such command", lines.Text())
		}
		a, err := do()
		if err != nil {
			return err
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// saveStore saves into an empty store: nothing is there already.
func (b *bench) saveStore() (a answer, err error) {
	dir := filepath.Join(b.dir, "state")
	if b.store != nil {
		if err := b.store.Close(); err != nil {
			return a, err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return a, err
	}
	if b.store, err = store.Open(dir, store.Options{}); err != nil {
		return a, err
	}
	return b.saveAgain()
}

// saveAgain saves under a new name: the chunks of an earlier save are there.
func (b *bench) saveAgain() (answer, error) {
	b.saves++
	begin := time.Now()
	c, err := storetest.Save(b.store, fmt.Sprintf("tinker://run/weights/%d", b.saves), api.SaveOptions{}, b.blobs...)
	b.path = c.Path
	return answer{time.Since(begin).Seconds(), c.Written}, err
}

// loadStore reads and verifies the last save.
func (b *bench) loadStore() (answer, error) {
	ctx, begin := context.Background(), time.Now()
	r, err := b.store.Open(ctx, b.path)
	if err != nil {
		return answer{}, err
	}
	defer r.Close()
	// Tensors on all processors, as the engine reads them.
	errs := make([]error, runtime.GOMAXPROCS(0))
	var next atomic.Int64
	var work sync.WaitGroup
	for w := range errs {
		work.Go(func() {
			buf := make([]byte, len(b.buf))
			for i := next.Add(1) - 1; i < int64(len(b.blobs)) && errs[w] == nil; i = next.Add(1) - 1 {
				x := b.blobs[i]
				errs[w] = r.Read(ctx, x.Name, buf[:len(x.Data)])
			}
		})
	}
	work.Wait()
	return answer{time.Since(begin).Seconds(), b.bytes}, errors.Join(errs...)
}

func (b *bench) file() string { return filepath.Join(b.dir, "state.safetensors") }

// savePlain writes one safetensors file.
func (b *bench) savePlain() (a answer, err error) {
	if err := os.RemoveAll(b.file()); err != nil {
		return a, err
	}
	begin := time.Now()
	f, err := os.Create(b.file())
	if err != nil {
		return a, err
	}
	var sources []hf.Source
	for _, x := range b.blobs {
		sources = append(sources, hf.Source{Name: x.Name, Stored: x.DType, Shape: x.Shape, Write: func(w io.Writer) error {
			_, err := w.Write(x.Data)
			return err
		}})
	}
	if err = hf.WriteSafetensors(f, sources, nil); err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return answer{time.Since(begin).Seconds(), b.bytes}, err
}

// loadPlain reads the file; nothing is verified.
func (b *bench) loadPlain() (answer, error) {
	begin := time.Now()
	f, err := os.Open(b.file())
	if err != nil {
		return answer{}, err
	}
	defer f.Close()
	for {
		_, err := f.Read(b.buf)
		if err == io.EOF {
			return answer{time.Since(begin).Seconds(), b.bytes}, nil
		}
		if err != nil {
			return answer{}, err
		}
	}
}
