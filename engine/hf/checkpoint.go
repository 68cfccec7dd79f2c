// Package hf reads and writes model folders in the layout of the Hugging Face hub: safetensors
// weights, config.json, generation_config.json and PEFT LoRA adapters. Every reader takes hostile bytes:
// it answers with an error that names the file, the thing, what was wanted and what was got, and
// allocates no more than a small multiple of the file's size.
package hf

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/kernels"
)

// File names of a model folder.
const (
	configName     = "config.json"
	generationName = "generation_config.json"
	weightsName    = "model.safetensors"
	indexName      = "model.safetensors.index.json"
)

// Checkpoint is an opened model folder. Any goroutine may use it. The weights stay in their files,
// mapped into memory, until Close.
//
// A mapped file must not be cut short while the checkpoint is open: its size is checked at Open and
// again by Want, but reading pages that no longer exist afterwards ends the program with SIGBUS, as it
// does for every program that maps files. Replacing files by renaming, as hub clients do, is safe.
type Checkpoint struct {
	Name       string // as given to Open or OpenFS; for messages
	Config     *Config
	Generation Generation

	fsys fs.FS
	dir  string // "" when the files are in memory

	mu      sync.Mutex
	blobs   []*blob
	tensors map[string]placed // nil after Close
}

type placed struct {
	Tensor
	blob *blob
}

// Open opens the model folder dir: config.json, model.safetensors or model.safetensors.index.json with
// its shards, and generation_config.json where there is one. Links to files elsewhere are followed, as
// hub caches need; names inside the files never lead out of the folder.
//
// Errors are *api.Error: NotFound for a missing folder or file, BadRequest for a damaged one,
// Unsupported for a format that is not read here.
func Open(dir string) (*Checkpoint, error) {
	if st, err := os.Stat(dir); err != nil {
		return nil, in(dir, disk.Error(err))
	} else if !st.IsDir() {
		return nil, bad("%s: is a file, wanted a model folder with a config.json", dir)
	}
	return open(&Checkpoint{Name: dir, fsys: os.DirFS(dir), dir: dir})
}

// OpenFS opens a model folder held in a file system, such as an embedded one. Its files are read into
// memory. name is for messages. Errors are as for Open.
func OpenFS(name string, fsys fs.FS) (*Checkpoint, error) {
	return open(&Checkpoint{Name: name, fsys: fsys})
}

func open(c *Checkpoint) (*Checkpoint, error) {
	err := c.load()
	if err != nil {
		_ = c.Close() // what went wrong first is what the caller can act on
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) load() error {
	text, err := c.read(configName, maxConfigBytes)
	if err != nil {
		return err
	}
	if c.Config, err = ParseConfig(text); err != nil {
		return c.in(configName, err)
	}
	text, err = c.read(generationName, maxConfigBytes)
	if err == nil {
		c.Generation, err = parseGeneration(text)
		err = c.in(generationName, err)
	}
	if err != nil && api.CodeOf(err) != api.NotFound {
		return err
	}
	c.tensors = map[string]placed{}
	if c.exists(weightsName) {
		return c.single()
	}
	if c.exists(indexName) {
		return c.sharded()
	}
	if c.exists("pytorch_model.bin") || c.exists("pytorch_model.bin.index.json") {
		return unsupported("%s: the weights are in pytorch_model.bin, wanted %s or %s; convert them first", c.Name, weightsName, indexName)
	}
	return api.Errorf(api.NotFound, "%s: neither %s nor %s is there", c.Name, weightsName, indexName)
}

// single lists the tensors of an unsharded checkpoint.
func (c *Checkpoint) single() error {
	b, h, err := c.shard(weightsName)
	if err != nil {
		return err
	}
	for _, t := range h.tensors {
		t.File = weightsName
		c.tensors[t.Name] = placed{t, b}
	}
	return nil
}

// sharded lists the tensors that the index names.
func (c *Checkpoint) sharded() error {
	text, err := c.read(indexName, maxIndexBytes)
	if err != nil {
		return err
	}
	shards, err := parseIndex(text)
	if err != nil {
		return c.in(indexName, err)
	}
	for _, s := range shards {
		b, h, err := c.shard(s.file)
		if err != nil {
			return c.in(indexName, err)
		}
		have := make(map[string]Tensor, len(h.tensors))
		for _, t := range h.tensors {
			have[t.Name] = t
		}
		for _, name := range s.tensors {
			t, ok := have[name]
			if !ok {
				return c.in(indexName, bad("tensor %s should be in %s, which does not have it", quote(name), s.file))
			}
			t.File = s.file
			c.tensors[name] = placed{t, b}
		}
	}
	return nil
}

// shard opens and parses one weights file. The blob is closed with the checkpoint.
func (c *Checkpoint) shard(name string) (*blob, *header, error) {
	var b *blob
	var err error
	if c.dir != "" {
		b, err = openBlob(c.dir, name)
	} else {
		b = &blob{name: name}
		b.data, err = readFile(c.fsys, name, maxMemoryBytes)
	}
	if err != nil {
		return nil, nil, c.in(name, err)
	}
	c.blobs = append(c.blobs, b)
	h, err := parseSafetensors(b.data)
	if err != nil {
		return nil, nil, c.in(name, err)
	}
	return b, h, nil
}

func (c *Checkpoint) exists(name string) bool {
	_, err := fs.Stat(c.fsys, name)
	return err == nil
}

func (c *Checkpoint) read(name string, limit int64) ([]byte, error) {
	b, err := readFile(c.fsys, name, limit)
	return b, c.in(name, err)
}

// in says which file of the folder an error is about.
func (c *Checkpoint) in(name string, err error) error {
	if c.dir != "" {
		return in(filepath.Join(c.dir, name), err)
	}
	return in(path.Join(c.Name, name), err)
}

// File returns the contents of a file of the folder, such as "tokenizer.json". The name is a plain
// file name; the file is at most 128 MiB. A missing file is NotFound.
func (c *Checkpoint) File(name string) ([]byte, error) { return c.read(name, maxFileBytes) }

// Bytes is the size of the weight files.
func (c *Checkpoint) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(0)
	for _, b := range c.blobs {
		n += int64(len(b.data))
	}
	return n
}

// EndTokens are the ids that end a text: those of generation_config.json, or of config.json where that says nothing.
func (c *Checkpoint) EndTokens() []int {
	if ids := c.Generation.EosTokenIDs; len(ids) > 0 {
		return ids
	}
	return c.Config.EosTokenIDs
}

// Names returns the names of all tensors, sorted. It includes those of an element type that Want
// refuses.
func (c *Checkpoint) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(c.tensors))
	for name := range c.tensors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Tensor returns a tensor as it is stored, whatever its element type: DType is 0 for one that the
// device contract does not have, and Stored tells it. It is false when there is no such tensor, or
// after Close. Want also checks.
func (c *Checkpoint) Tensor(name string) (Tensor, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.tensors[name]
	return p.Tensor, ok
}

// Want returns a tensor of 16- or 32-bit floating-point values and exactly this shape. Otherwise the
// error names file, tensor, wanted and got; it is NotFound for a missing tensor, Unsupported for
// another element type, BadRequest for another shape and for a file that has changed since Open.
func (c *Checkpoint) Want(name string, shape ...int) (Tensor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tensors == nil {
		return Tensor{}, api.Errorf(api.Closed, "%s is closed", c.Name)
	}
	p, ok := c.tensors[name]
	if !ok {
		return Tensor{}, api.Errorf(api.NotFound, "%s: tensor %s is missing", c.Name, quote(name))
	}
	err := p.blob.unchanged()
	switch {
	case err != nil:
		return Tensor{}, c.in(p.File, err)
	case p.DType != kernels.F32 && p.DType != kernels.BF16 && p.DType != kernels.F16:
		err = unsupported("tensor %s is %s, wanted F32, BF16 or F16", quote(name), p.Stored)
	case !slices.Equal(p.Shape, shape):
		err = bad("tensor %s has shape %v, wanted %v", quote(name), p.Shape, shape)
	default:
		return p.Tensor, nil
	}
	return Tensor{}, c.in(p.File, err)
}

// Release gives the memory of a tensor's mapped pages back to the system. Its Data stays valid: reading
// it again brings the pages back from the file. For files in memory, and where the system has no such
// call, it does nothing.
func (c *Checkpoint) Release(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.tensors[name]; ok {
		p.blob.release(p.Data)
	}
}

// ReleasePart does for a part of a tensor's Data, which must alias it, what Release does for the whole.
func (c *Checkpoint) ReleasePart(name string, part []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.tensors[name]; ok {
		p.blob.release(part)
	}
}

// Close unmaps and closes the files. No Data of this checkpoint may be touched afterwards. Closing
// again does nothing.
func (c *Checkpoint) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, b := range c.blobs {
		errs = append(errs, b.close())
	}
	c.blobs, c.tensors = nil, nil
	return errors.Join(errs...)
}
