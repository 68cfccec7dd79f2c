package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// exportFlags are the settings of checkpoint export.
type exportFlags struct {
	local.ExportOptions
	out             string
	weightsOnly     bool
	replace, dryRun bool
}

// exportReport is what checkpoint export prints with --json.
type exportReport struct {
	Checkpoint string   `json:"checkpoint"`
	Format     string   `json:"format"`
	Out        string   `json:"out"`
	Bytes      int64    `json:"bytes"`
	Notes      []string `json:"notes,omitempty"`
	Written    bool     `json:"written"`
}

func checkpointExportCommand(a *app) *cobra.Command {
	f := exportFlags{ExportOptions: local.ExportOptions{Format: local.PEFT, Unembed: local.KeepUnembed}}
	c := &cobra.Command{
		Use:   "export PATH --out FILE|DIR",
		Short: "Write a checkpoint for other programs: archive, PEFT folder, merged model, GGUF",
		Long: "export writes a checkpoint's weights in one of these formats:\n" +
			"  peft     a folder that peft and transformers load\n" +
			"  merged   a Hugging Face model folder: the base model with the adapter in its weights, file by file as the base has them\n" +
			"  gguf     a file for llama.cpp's --lora\n" +
			"  archive  a tar file, as the hosted service gives them out; of a training state also moments and step, so that import takes\n" +
			"           the run to another machine\n" +
			"The size is told, and the free space looked at, before anything is written. What is written appears whole or not at all; it is read\n" +
			"again and compared before that.\n\n" +
			"Some programs cannot load an adapter of the output projection (lm_head): --unembed drop leaves it out, which changes what the\n" +
			"model answers; --unembed merge writes the whole projection into the PEFT folder.",
		Example: "  tinker-local checkpoint export tinker://RUN/sampler_weights/final --out my-adapter\n" +
			"  tinker-local checkpoint export tinker://RUN/weights/final --format archive --out final.tar\n" +
			"  tinker-local checkpoint export tinker://RUN/weights/final --format merged --out my-model --dry-run\n" +
			"  tinker-local checkpoint export tinker://RUN/weights/final --format gguf --unembed drop --out my-adapter.gguf",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if f.out == "" {
				return usageError{c, errors.New("--out is required")}
			}
			p, err := api.ParsePath(args[0])
			if err != nil {
				return err
			}
			f.Optimizer, f.DType = !f.weightsOnly, a.opt.DType
			return a.withState(c.Context(), false, func(s local.State) error { return a.export(c.Context(), s, p, f) })
		},
	}
	l := c.Flags()
	l.StringVar(&f.out, "out", "", "file (archive, gguf) or folder (peft, merged) to write (required)")
	l.Var(choiceFlag{&f.Format, local.Formats}, "format", strings.Join(local.Formats, ", "))
	l.Var(choiceFlag{&f.Unembed, local.Unembeds}, "unembed", "the adapter of the output projection: keep, drop, or (peft) merge")
	l.StringVar(&f.BaseModel, "base-model", "", "base model, when it has another name here than in the checkpoint")
	l.BoolVar(&f.weightsOnly, "weights-only", false, "archive: leave out a training state's moments and step")
	l.BoolVar(&f.OwnHead, "own-head", false, "gguf: the base's GGUF has an output.weight of its own, although its embeddings are tied")
	l.BoolVar(&f.replace, "replace", false, "replace an export that is there")
	l.BoolVar(&f.dryRun, "dry-run", false, "tell the size, and write nothing")
	return c
}

func (a *app) export(ctx context.Context, s local.State, p api.Path, f exportFlags) error {
	x, err := a.models().PlanExport(ctx, s, p, f.ExportOptions)
	if f.Format == local.GGUF && f.Unembed == local.KeepUnembed && api.CodeOf(err) == api.Unsupported {
		return fmt.Errorf("%w (--unembed drop; or --own-head, if the base's GGUF was made with an output.weight of its own)", err)
	}
	if err != nil {
		return err
	}
	defer x.Close()
	a.say("%s: %s, as %s.", p, bytesText(x.Bytes), x.Format)
	a.sayNotes(x.Notes)
	if !f.dryRun {
		bar := newByteBar(a.err, "exporting")
		err := x.Write(ctx, f.out, local.WriteOptions{Replace: f.replace, Progress: bar.set})
		bar.end()
		if err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(exportReport{Checkpoint: p.String(), Format: x.Format, Out: f.out, Bytes: x.Bytes, Notes: x.Notes, Written: !f.dryRun})
	}
	if !f.dryRun {
		a.say("Written and read again: %s", f.out)
	}
	return nil
}

func (a *app) sayNotes(notes []string) {
	for _, note := range notes {
		a.say("Note: %s.", strings.TrimSuffix(printable(note), "."))
	}
}

// importReport is what checkpoint import prints with --json.
type importReport struct {
	api.Checkpoint
	Notes []string `json:"notes,omitempty"`
}

func checkpointImportCommand(a *app) *cobra.Command {
	var o local.ImportOptions
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "import FILE|DIR PATH",
		Short: "Bring a PEFT folder or an archive into the state directory",
		Long: "import reads an adapter that another program has written and saves it as the checkpoint PATH: tinker://RUN/sampler_weights/NAME, or\n" +
			"tinker://RUN/weights/NAME, under which an archive's moments and step are kept, too. RUN may be any name.\n\n" +
			"Another alpha, or a rank-stabilised one, is put into the factors. Modules that the adapter leaves out get factors that add\n" +
			"nothing, so that it answers the same and can be trained on. What is not LoRA on linear layers is refused by name. The base model\n" +
			"must be in the --models folder, for its shapes. What was saved is read again and compared.",
		Example: "  tinker-local checkpoint import my-adapter tinker://imported/sampler_weights/mine\n" +
			"  tinker-local checkpoint import final.tar tinker://moved/weights/final --base-model Qwen/Qwen3-0.6B",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := api.ParsePath(args[1])
			if err != nil {
				return err
			}
			switch {
			case p.Kind == "":
				return usageError{c, fmt.Errorf("%s has no kind, wanted tinker://%s/sampler_weights/%s or tinker://%s/weights/%s", p, p.Run, p.Name, p.Run, p.Name)}
			case c.Flags().Changed("ttl") && ttl <= 0:
				return usageError{c, fmt.Errorf("--ttl is %v, wanted more than 0", ttl)}
			}
			o.Path, o.Save.TTL = p, ttl
			return a.withState(c.Context(), true, func(s local.State) error { return a.importFrom(c.Context(), s, args[0], o) })
		},
	}
	l := c.Flags()
	l.StringVar(&o.BaseModel, "base-model", "", "base model; not given: the one that the adapter names")
	l.Int64Var(&o.Seed, "seed", 1, "seed of the factors that the adapter lacks")
	l.BoolVar(&o.Save.Overwrite, "overwrite", false, "replace a checkpoint that is there")
	l.DurationVar(&ttl, "ttl", 0, "let the checkpoint expire so long from now, such as 168h")
	return c
}

func (a *app) importFrom(ctx context.Context, s local.State, source string, o local.ImportOptions) error {
	c, notes, err := a.models().Import(ctx, source, s, o)
	if err != nil {
		return fmt.Errorf("import %s: %w", source, err)
	}
	if a.json {
		return a.printJSON(importReport{c, notes})
	}
	a.sayNotes(notes)
	a.checkpointTable([]api.Checkpoint{c})
	return nil
}
