// Package local puts an engine together on this machine: it finds a device and base models, reads
// tokenizers, and reads and writes adapter folders.
package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/sample"
	"tinkerlocal/engine/token"
	"tinkerlocal/kernels"
	"tinkerlocal/kernels/cpu"
	"tinkerlocal/store"
)

// Options say what the machine is to be used for. The zero value serves the embedded model on the best device.
type Options struct {
	Models string   // folder of ORG/NAME folders; "": only the embedded model, paths and the hub cache
	Paths  []string // the only paths that name models; nil: all do. See Models.Paths
	Device string   // "auto" (or ""), "cpu", "cpu:VARIANT" (of its kernels: portable, avx2), "cuda", "cuda:N"
	DType  string   // how base weights are kept: "auto" (or ""), "float32", "bfloat16"
	Limits engine.Limits
	State  string // folder of the checkpoint store, made if it is not there; "": checkpoints are kept in memory until Close

	// Checkpoints is a store that is open already, such as one that another process has in State; nil: State's is opened. The engine
	// closes it, and so does an Open that fails.
	Checkpoints api.Store

	HubCache string // cache of Hugging Face programs, also a source of models; "": not looked into; see DefaultHubCache

	Progress func(model string, done, total int64) // parameters of a base loaded; see engine.Options
	Log      *slog.Logger                          // nil: nothing is logged
}

// Open returns an engine on this machine. Close it.
func Open(ctx context.Context, o Options) (_ *engine.Engine, err error) {
	checkpoints := o.Checkpoints
	defer func() {
		if err != nil && checkpoints != nil {
			checkpoints.Close()
		}
	}()
	weights, err := storeType(o.DType)
	if err != nil {
		return nil, err
	}
	dev, err := OpenDevice(o.Device)
	if err != nil {
		return nil, err
	}
	var aside engine.Shelf // only whoever has the state directory may use its folder
	if checkpoints == nil {
		checkpoints, err = openStore(o)
		if err == nil && o.State != "" {
			aside, err = openShelf(o.State)
		}
	}
	if err != nil {
		dev.Close()
		return nil, err
	}
	e, err := engine.Open(ctx, engine.Options{
		Device: dev, Models: Models{Dir: o.Models, HubCache: o.HubCache, Paths: o.Paths}, Limits: o.Limits, Store: weights,
		Checkpoints: checkpoints, Shelf: aside, Losses: &lazyLosses{state: o.State, log: o.Log},
		Detokenizer: detokenizer, Progress: o.Progress, Log: o.Log,
	})
	if err != nil {
		dev.Close()
	}
	return e, err
}

func openStore(o Options) (api.Store, error) {
	if o.State == "" {
		return store.OpenMemory(store.Options{Log: o.Log}), nil
	}
	return OpenState(o.State, true, o.Log)
}

// State is the store of checkpoints and run records in a state directory.
type State = api.StateStore

// OpenState opens a state directory without an engine, to look after what is in it. It is made if make is set; otherwise one that
// is not there is an empty store. One process at a time may have it open: the error of others is api.Busy. Close it.
func OpenState(dir string, make bool, log *slog.Logger) (State, error) {
	if dir == "" {
		return nil, api.Errorf(api.BadRequest, "no state directory is named and no home folder is known: set $%s", StateVariable)
	}
	if _, err := os.Stat(dir); !make && errors.Is(err, fs.ErrNotExist) {
		return store.OpenMemory(store.Options{Log: log}), nil
	}
	s, err := store.Open(dir, store.Options{Log: log})
	if err != nil {
		return nil, err // not s: an interface that holds a nil *Store is not nil
	}
	return s, nil
}

// StateOwner is the process that has a state directory open, or had when it died; 0: nobody knows.
func StateOwner(dir string) (pid int) { return store.Owner(dir) }

func storeType(name string) (kernels.DType, error) {
	switch name {
	case "", "auto":
		return 0, nil
	case "float32":
		return kernels.F32, nil
	case "bfloat16":
		return kernels.BF16, nil
	}
	return 0, api.Errorf(api.BadRequest, "dtype is %q, wanted auto, float32 or bfloat16", name)
}

// OpenDevice opens a compute device by name.
func OpenDevice(name string) (kernels.Device, error) {
	switch {
	case name == "", name == "auto", name == "cpu":
		return cpu.Open(cpu.Options{})
	case strings.HasPrefix(name, "cpu:") && name != "cpu:":
		d, err := cpu.Open(cpu.Options{Variant: strings.TrimPrefix(name, "cpu:")})
		if err != nil {
			return nil, api.Errorf(api.BadRequest, "device %s: %w", name, err)
		}
		return d, nil
	case name == "cuda", strings.HasPrefix(name, "cuda:"):
		return nil, api.Errorf(api.Unsupported, "device %s: %s; use --device cpu", name, CUDAStatus())
	}
	return nil, api.Errorf(api.BadRequest, "device is %q, wanted auto, cpu, cpu:VARIANT, cuda or cuda:N", name)
}

// CUDAStatus says, for people, whether a CUDA device can be used.
func CUDAStatus() string { return "this build has no CUDA device" }

// Tokenizer reads the tokenizer of a base model.
func (m Models) Tokenizer(name string) (*token.Tokenizer, error) {
	src, err := m.Open(name)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	return loadTokenizer(src)
}

func loadTokenizer(src *hf.Checkpoint) (*token.Tokenizer, error) {
	data, err := src.File("tokenizer.json")
	if err != nil {
		return nil, err
	}
	t, err := token.Parse(data)
	if err != nil {
		return nil, api.Errorf(api.CodeOf(err), "%s/tokenizer.json: %w", src.Name, err)
	}
	return t, nil
}

func detokenizer(src *hf.Checkpoint) (func() sample.Detokenizer, error) {
	t, err := loadTokenizer(src)
	if err != nil {
		return nil, err
	}
	return func() sample.Detokenizer { return t.NewDecoder(false) }, nil
}
