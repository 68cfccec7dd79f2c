package main

import (
	"context"
	"fmt"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
	"tinkerlocal/engine/sft/data"
)

// trainingData is what a run trains on and what it is measured on.
type trainingData struct {
	train, val *data.Set // val is nil when nothing is measured
	files      []*data.Set
	report     dataReport
}

// dataReport is what --json says about the data.
type dataReport struct {
	Rows         int     `json:"rows"`
	Bad          int     `json:"bad_rows"`
	Dropped      int     `json:"dropped"`
	Truncated    int     `json:"truncated"`
	Examples     int     `json:"examples"`
	Validation   int     `json:"validation_examples"`
	Tokens       int64   `json:"tokens"`
	Targets      int64   `json:"targets"`
	Longest      int     `json:"longest"`
	Mean         float64 `json:"mean_tokens"`
	Used         float64 `json:"micro_batch_use"`
	Padded       float64 `json:"padded_tokens_per_token"`
	MicroBatches int     `json:"micro_batches_per_epoch"`
}

func (d *trainingData) close() {
	for _, s := range d.files {
		s.Close()
	}
}

// chatFormat is the format that was asked for, or the model's own.
func chatFormat(name string, facts *local.Facts) (*chat.Format, error) {
	if name != "" {
		return chat.ByName(name)
	}
	return chat.For(facts.Template, facts.Name)
}

// openData checks all files, and says what was found.
func (a *app) openData(f trainFlags, facts *local.Facts, custom *customLoss) (_ *trainingData, err error) {
	o := data.Options{
		Kind: data.Kind(f.rows.format), Tokenizer: facts.Tokenizer, End: -1, MaxTokens: facts.Spec.MaxPositions, LimitName: "the context of " + f.model,
		TooLong: data.TooLong(f.rows.tooLong), SkipBad: f.rows.skipBad, TrainOn: chat.TrainAllAssistant,
		Chat: chat.Options{BOS: facts.BOS, EOS: facts.EOS}, Numbers: custom.names(),
	}
	if o.Format, o.FormatErr = chatFormat(f.rows.renderer, facts); o.FormatErr != nil {
		o.FormatErr = fmt.Errorf("--renderer is not given, and %w", o.FormatErr)
	}
	if f.rows.trainOn == "last" {
		o.TrainOn = chat.TrainLastAssistant
	}
	if n := f.rows.maxLength; n > 0 && n < o.MaxTokens {
		o.MaxTokens, o.LimitName = n, "--max-length"
	}
	if len(facts.EosTokenIDs) > 0 && !f.rows.noEnd {
		o.End = facts.EosTokenIDs[0]
	}
	d := &trainingData{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.train, err = a.openSet(d, "--data", f.data, o); err != nil {
		return nil, err
	}
	switch {
	case f.val != "":
		if d.val, err = a.openSet(d, "--val", f.val, o); err != nil {
			return nil, err
		}
		if d.val.Prefers() != d.train.Prefers() {
			return nil, api.Errorf(api.BadRequest, "--val %s and --data %s: one has preference pairs and the other has not", f.val, f.data)
		}
	case f.valSplit > 0:
		if d.train, d.val, err = d.train.Split(f.valSplit, f.seed); err != nil {
			return nil, err
		}
	}
	if custom != nil {
		if err := custom.fits(d); err != nil {
			return nil, fmt.Errorf("--data %s: %w", f.data, err)
		}
	} else if prefers := d.train.Prefers(); prefers != (f.loss == "dpo") && f.loss != "auto" {
		if prefers {
			return nil, api.Errorf(api.BadRequest, "--loss %s: %s has preference pairs, which are trained with dpo", f.loss, f.data)
		}
		return nil, api.Errorf(api.BadRequest, "--loss dpo: %s has no preference pairs; wanted rows of {\"prompt\": …, \"chosen\": …, \"rejected\": …}", f.data)
	}
	a.describe(d, f)
	return d, nil
}

// openSet checks one file, with a bar, and reports the rows it leaves out.
func (a *app) openSet(d *trainingData, flag, path string, o data.Options) (*data.Set, error) {
	bar := countBar(a.err, 1, "checking "+path)
	o.Progress = func(done, total int64) {
		if bar.GetMax64() != total {
			bar.ChangeMax64(total)
		}
		_ = bar.Set64(done)
	}
	s, err := data.Open(path, o)
	_ = bar.Clear()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	d.files = append(d.files, s)
	r := s.Report()
	for _, bad := range r.FirstBad {
		fmt.Fprintf(a.err, "skipped %s:%d: %v\n", path, bad.Line, bad.Reason)
	}
	if more := r.Bad - len(r.FirstBad); more > 0 {
		fmt.Fprintf(a.err, "skipped %d more rows of %s\n", more, path)
	}
	return s, nil
}

// describe prints what the data are and how well they pack.
func (a *app) describe(d *trainingData, f trainFlags) {
	for _, s := range d.files {
		r := s.Report()
		var kinds []string
		for _, k := range data.Kinds {
			if n := r.Kinds[data.Kind(k)]; n > 0 {
				kinds = append(kinds, fmt.Sprintf("%s %s", thousands(float64(n)), k))
			}
		}
		a.say("%s: %s rows (%s), %s bad, %s dropped as too long, %s truncated.", r.Path, thousands(float64(r.Rows)), strings.Join(kinds, ", "),
			thousands(float64(r.Bad)), thousands(float64(r.Dropped)), thousands(float64(r.Truncated)))
		if len(r.Ignored) > 0 {
			a.say("  fields that are not read: %s", strings.Join(r.Ignored, ", "))
		}
	}
	z := d.train.Sizes()
	p := d.train.Packing(sft.FirstEpoch(d.train.Len(), f.seed), f.batch, engine.DefaultMicroBatchTokens)
	a.say("Training: %s examples, %s tokens, %s of them learned (%.1f %%); longest %s (line %d), mean %.1f.", thousands(float64(z.Examples)),
		thousands(float64(z.Tokens)), thousands(float64(z.Targets)), 100*float64(z.Targets)/float64(z.Tokens), thousands(float64(z.Longest)), z.LongestLine, z.Mean)
	a.say("Packing: %s micro-batches of up to %s tokens per epoch, %.1f %% full; padded batches would process %.2f times the tokens.",
		thousands(float64(p.MicroBatches)), thousands(engine.DefaultMicroBatchTokens), 100*p.Used, p.Padded)
	r := d.files[0].Report()
	d.report = dataReport{
		Rows: r.Rows, Bad: r.Bad, Dropped: r.Dropped, Truncated: r.Truncated, Examples: z.Examples, Tokens: z.Tokens, Targets: z.Targets,
		Longest: z.Longest, Mean: z.Mean, Used: p.Used, Padded: p.Padded, MicroBatches: p.MicroBatches,
	}
	if d.val != nil {
		v := d.val.Sizes()
		d.report.Validation = v.Examples
		a.say("Validation: %s examples, %s tokens.", thousands(float64(v.Examples)), thousands(float64(v.Tokens)))
	}
}

// tasks makes the training task and puts the validation task into o.
func (d *trainingData) tasks(ctx context.Context, m *opened, beta float64, custom *customLoss, o *sft.Options) (sft.Task, error) {
	if custom == nil && !d.train.Prefers() {
		if d.val != nil {
			o.Val = sft.Supervised{Source: d.val}
		}
		return sft.Supervised{Source: d.train}, nil
	}
	var reference *engine.Run
	if custom == nil || custom.reference {
		// A fresh adapter adds nothing, so a run that is never trained is the base model. Rank 1 keeps it small.
		var err error
		reference, err = m.newRun(ctx, api.LoraConfig{Rank: 1, TrainAttn: true}, map[string]string{"purpose": "reference model"})
		if err != nil {
			return nil, fmt.Errorf("reference model: %w", err)
		}
	}
	make := func(s *data.Set) sft.Task {
		if custom != nil {
			return custom.task(s, reference)
		}
		return sft.NewPreference(s, beta, reference)
	}
	if d.val != nil {
		o.Val = make(d.val)
	}
	return make(d.train), nil
}
