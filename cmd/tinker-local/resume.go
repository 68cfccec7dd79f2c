package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
)

// trainKey is where a run's metadata keep what train needs to go on with it; resumedKey is the checkpoint that it went on from.
const (
	trainKey   = "train"
	resumedKey = "resumed_from"
)

// trainSettings are what decides every bit of a training run, besides the program and the machine.
type trainSettings struct {
	Flags   map[string][]string `json:"flags"` // those that were given
	Data    fileMark            `json:"data"`
	Val     *fileMark           `json:"val,omitempty"`
	Options loopSettings        `json:"options"` // what came of the flags and of defaults
	Plugin  *api.PluginRecord   `json:"plugin,omitempty"`
	Version string              `json:"version"` // of the program
}

// fileMark tells whether a file is the one it was.
type fileMark struct {
	Path   string `json:"path"` // absolute
	SHA256 string `json:"sha256"`
}

// loopSettings are the part of sft.Options that decides what is computed.
type loopSettings struct {
	Steps     int            `json:"steps"`
	BatchSize int            `json:"batch_size"`
	Warmup    int            `json:"warmup"`
	Schedule  sft.Schedule   `json:"schedule"`
	FinalLR   float64        `json:"final_lr"`
	Adam      api.AdamParams `json:"adam"`
	Seed      int64          `json:"seed"`
}

func loopSettingsOf(o sft.Options) loopSettings {
	return loopSettings{o.Steps, o.BatchSize, o.Warmup, o.Schedule, o.FinalLR, o.Adam, o.Seed}
}

// freeFlags change nothing of what a run computes up to its last step, so that they may differ in a resumed run and are not kept.
// Those of lengthFlags are kept, and may be given again to train longer.
var (
	freeFlags   = []string{"out", "log", "curve", "resume", "inspect", "save-every", "keep-last", "no-save", "other-loss"}
	lengthFlags = []string{"steps", "epochs"}
	fileFlags   = []string{"data", "val"} // which may have moved
)

// settings are those of a run that starts now.
func (f trainFlags) settings(c *cobra.Command, o sft.Options) (trainSettings, error) {
	s := trainSettings{Flags: map[string][]string{}, Options: loopSettingsOf(o), Version: buildVersion().Version}
	ownFlags(c, func(x *pflag.Flag) {
		if !slices.Contains(freeFlags, x.Name) && !slices.Contains(fileFlags, x.Name) {
			s.Flags[x.Name] = flagValues(x)
		}
	})
	var err error
	if s.Data, err = markFile(f.data); err != nil {
		return s, fmt.Errorf("--data: %w", err)
	}
	if f.val != "" {
		m, err := markFile(f.val)
		if err != nil {
			return s, fmt.Errorf("--val: %w", err)
		}
		s.Val = &m
	}
	return s, nil
}

// ownFlags calls do for the flags that were given, of those that are not every command's.
func ownFlags(c *cobra.Command, do func(*pflag.Flag)) {
	c.LocalFlags().VisitAll(func(x *pflag.Flag) {
		if x.Changed && c.InheritedFlags().Lookup(x.Name) == nil {
			do(x)
		}
	})
}

// flagValues are the values that a flag was given, one for each time.
func flagValues(f *pflag.Flag) []string {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	return []string{f.Value.String()}
}

func markFile(path string) (m fileMark, err error) {
	if m.Path, err = filepath.Abs(path); err != nil {
		return m, err
	}
	f, err := os.Open(path)
	if err != nil {
		return m, api.Errorf(api.BadRequest, "%w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return m, api.Errorf(api.BadRequest, "%w", err)
	}
	m.SHA256 = hex.EncodeToString(h.Sum(nil))
	return m, nil
}

// resumed is a run that is to go on.
type resumed struct {
	state    api.Checkpoint
	settings trainSettings
	longer   bool // more or fewer steps were asked for
}

// newestRun stands for the run with the latest requests that train can go on with.
const newestRun = "newest"

// findResumed finds a training state and the settings of its run. what is a checkpoint's path, a run, or newestRun.
func (a *app) findResumed(ctx context.Context, what string) (r *resumed, err error) {
	err = a.withState(ctx, false, func(s local.State) error {
		r, err = lookUp(ctx, s, what)
		return err
	})
	return r, err
}

func lookUp(ctx context.Context, s local.State, what string) (*resumed, error) {
	var run api.RunRecord
	var err error
	r := &resumed{}
	switch {
	case isCheckpoint(what):
		p, err := api.ParsePath(what)
		if err != nil {
			return nil, err
		}
		if r.state, err = s.Info(ctx, p); err != nil {
			return nil, err
		}
		if run, err = s.Run(ctx, p.Run); err != nil {
			return nil, err
		}
	case what == newestRun:
		if run, err = newest(ctx, s); err != nil {
			return nil, err
		}
	default:
		if run, err = s.Run(ctx, what); err != nil {
			return nil, err
		}
	}
	text, ok := run.UserMetadata[trainKey]
	if !ok {
		return nil, api.Errorf(api.BadRequest, "run %s was not made by train: its record has no training settings", run.ID)
	}
	if r.state.Step == 0 && !isCheckpoint(what) {
		if run.LastCheckpoint == nil {
			return nil, api.Errorf(api.NotFound, "run %s has no saved state", run.ID)
		}
		r.state = *run.LastCheckpoint
	}
	if !r.state.Optimizer {
		return nil, api.Errorf(api.BadRequest, "checkpoint %v has weights only, no optimizer state to go on with", r.state.Path)
	}
	if err := json.Unmarshal([]byte(text), &r.settings); err != nil {
		return nil, api.Errorf(api.BadRequest, "run %s: its training settings cannot be read: %w", run.ID, err)
	}
	return r, nil
}

func newest(ctx context.Context, s local.State) (api.RunRecord, error) {
	all, err := s.Runs(ctx, api.RunQuery{})
	for _, r := range all.Runs {
		if _, ok := r.UserMetadata[trainKey]; ok && r.LastCheckpoint != nil {
			return r, nil
		}
	}
	if err == nil {
		err = api.Errorf(api.NotFound, "no run of train has a saved state")
	}
	return api.RunRecord{}, err
}

// apply sets the flags as they were when the run began. Those that would change what it computes may not be given again.
func (r *resumed) apply(c *cobra.Command) error {
	given := func(name string) bool { return c.Flags().Changed(name) }
	r.longer = slices.ContainsFunc(lengthFlags, given)
	var refused []string
	ownFlags(c, func(x *pflag.Flag) {
		if !slices.Contains(slices.Concat(freeFlags, lengthFlags, fileFlags), x.Name) {
			refused = append(refused, "--"+x.Name)
		}
	})
	if len(refused) > 0 {
		return usageError{c, fmt.Errorf("%s: not with --resume, which goes on with the settings that the run began with", strings.Join(refused, ", "))}
	}
	for name, values := range r.settings.Flags {
		if slices.Contains(lengthFlags, name) && r.longer {
			continue
		}
		for _, v := range values {
			if err := c.Flags().Set(name, v); err != nil {
				return api.Errorf(api.BadRequest, "the run began with --%s %s, which this program does not take: %w", name, v, err)
			}
		}
	}
	for name, mark := range map[string]*fileMark{"data": &r.settings.Data, "val": r.settings.Val} {
		if mark == nil {
			if given(name) {
				return usageError{c, fmt.Errorf("--%s: the run began without", name)}
			}
			continue
		}
		if !given(name) {
			if err := c.Flags().Set(name, mark.Path); err != nil {
				return err
			}
		}
		now, err := markFile(c.Flags().Lookup(name).Value.String())
		if err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
		if now.SHA256 != mark.SHA256 {
			return api.Errorf(api.BadRequest, "--%s %s is not the file that the run began with: its SHA-256 is %.12s…, wanted %.12s…", name, now.Path, now.SHA256, mark.SHA256)
		}
	}
	return nil
}

// compare refuses to go on when this program would train in another way than the run began.
func (r *resumed) compare(o sft.Options) error {
	then, now := r.settings.Options, loopSettingsOf(o)
	if r.longer {
		then.Steps, then.Warmup = now.Steps, now.Warmup
	}
	if then != now {
		return api.Errorf(api.BadRequest, "this program (%s) makes other settings of the run's flags than the one it began with (%s): %+v, wanted %+v", buildVersion().Version, r.settings.Version, now, then)
	}
	if done := int(r.state.Step); done >= o.Steps {
		return api.Errorf(api.BadRequest, "%v is at step %d of %d: the training is over; give more --steps to go on", r.state.Path, done, o.Steps)
	}
	return nil
}

// metadata is what the store keeps of the run: its settings, and where it came from.
func (s trainSettings) metadata(from *resumed) (map[string]string, error) {
	text, err := json.Marshal(s)
	m := map[string]string{trainKey: string(text)}
	if from != nil {
		m[resumedKey] = from.state.Path.String()
	}
	return m, err
}
