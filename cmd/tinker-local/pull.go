package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tinkerlocal/cmd/tinker-local/hub"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// pullFlags are the settings of the pull command.
type pullFlags struct {
	revision, endpoint string
	include, exclude   []string
	parallel           int
}

func pullCommand(a *app) *cobra.Command {
	var f pullFlags
	c := &cobra.Command{
		Use:   "pull ORG/NAME",
		Short: "Download a base model into the models folder",
		Long: "pull downloads what the engine needs of a model (configuration, tokenizer, chat template, safetensors weights)\n" +
			"from the Hugging Face hub, or a mirror of it, into ORG/NAME in the --models folder. Every file's checksum is\n" +
			"compared; the model appears in the folder when all of it is there. Interrupted, it goes on where it stopped\n" +
			"when the same command is given again. A model that was pulled before is brought up to date.\n\n" +
			"A private or gated model needs an access token: in $HF_TOKEN, or in the file that `hf auth login` writes. The\n" +
			"token is sent to the endpoint and to no other host. $HF_ENDPOINT names a mirror as --endpoint does,\n" +
			"$HF_HUB_OFFLINE=1 forbids downloads, and $HTTPS_PROXY is honoured.",
		Example: "  tinker-local model pull Qwen/Qwen3-0.6B\n" +
			"  tinker-local model pull Qwen/Qwen3-0.6B --revision main --models ~/models\n" +
			"  tinker-local model pull Qwen/Qwen3-0.6B --endpoint https://mirror.example --include 'LICENSE*'",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case f.parallel < 1 || f.parallel > 16:
				return usageError{c, fmt.Errorf("--parallel is %d, wanted 1..16", f.parallel)}
			case a.opt.Models == "":
				return usageError{c, fmt.Errorf("--models is empty, wanted the folder to download into")}
			}
			return a.pull(c.Context(), args[0], f)
		},
	}
	l := c.Flags()
	l.StringVar(&f.revision, "revision", "main", "branch, tag or commit of the model's repository")
	l.StringVar(&f.endpoint, "endpoint", "", "address of the hub or a mirror (default $HF_ENDPOINT, or "+hub.DefaultEndpoint+")")
	l.StringArrayVar(&f.include, "include", nil, "pattern of more files to download, such as '*.md'; can be repeated")
	l.StringArrayVar(&f.exclude, "exclude", nil, "pattern of files to leave out; can be repeated")
	l.IntVar(&f.parallel, "parallel", 4, "files to download at a time")
	return c
}

func (a *app) pull(ctx context.Context, name string, f pullFlags) error {
	if name == local.TinyModel {
		return api.Errorf(api.BadRequest, "%s is inside this program; there is nothing to download", name)
	}
	settings, err := hub.FromEnv(os.Getenv, local.HubHome(os.Getenv), f.endpoint)
	if err != nil {
		return err
	}
	bars := newPullBars(a.err, time.Now)
	client, err := hub.New(settings, hub.Limits{Parallel: f.parallel}, "tinker-local/"+buildVersion().Version, bars.event)
	if err != nil {
		return err
	}
	a.say("Downloading %s (revision %s) from %s to %s.", name, f.revision, settings.Endpoint.Host, a.opt.Models)
	res, err := client.Pull(ctx, hub.Request{Name: name, Revision: f.revision, Models: a.opt.Models, Include: f.include, Exclude: f.exclude})
	bars.end()
	if err != nil {
		if api.CodeOf(err) == api.Cancelled {
			return fmt.Errorf("%w: %w", errInterrupted, err)
		}
		return err
	}
	if a.json {
		return a.printJSON(res)
	}
	for _, note := range res.Notes {
		a.say("Note: %s.", note)
	}
	got := "all of it was there already"
	if res.Downloaded > 0 {
		got = bytesText(res.Downloaded) + " downloaded"
	}
	a.say("%s is in %s: %d files, %s (%s), commit %.12s.", res.Name, res.Dir, res.Files, bytesText(res.Bytes), got, res.Commit)
	return nil
}
