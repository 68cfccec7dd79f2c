package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// finding is one line of doctor's report.
type finding struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func doctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine: device, CPU features, memory, embedded model",
		Long: "doctor opens the compute device, lists what it found, and samples one token from the embedded model.\n" +
			"The exit code is 0 when this machine is usable.",
		Example: "  tinker-local doctor\n  tinker-local doctor --device cpu --json",
		RunE: func(c *cobra.Command, _ []string) error {
			found := a.examine(c)
			usable := true
			for _, f := range found {
				usable = usable && f.OK
				mark := "ok  "
				if !f.OK {
					mark = "FAIL"
				}
				a.say("%s  %-14s %s", mark, f.What, f.Detail)
			}
			if a.json {
				if err := a.printJSON(map[string]any{"usable": usable, "findings": found}); err != nil {
					return err
				}
			}
			if !usable {
				return errors.New("this machine is not usable as it is")
			}
			return nil
		},
	}
}

func (a *app) examine(c *cobra.Command) []finding {
	found := []finding{{"program", true, fmt.Sprintf("%s, %s/%s", buildVersion().Version, runtime.GOOS, runtime.GOARCH)}}
	add := func(what string, err error, detail string) {
		if err != nil {
			detail = err.Error()
		}
		found = append(found, finding{what, err == nil, detail})
	}
	features := local.CPUFeatures()
	add("cpu", nil, fmt.Sprintf("%d cores, %s", runtime.NumCPU(), strings.Join(features, " ")))
	m, err := a.open(c.Context(), local.TinyModel)
	if err != nil {
		add("device", err, "")
		return found
	}
	defer m.close()
	info := m.engine.Device()
	add("device", nil, fmt.Sprintf("%s; CUDA: %s", info.Name, local.CUDAStatus()))
	memory := "unknown"
	if info.Memory > 0 {
		memory = fmt.Sprintf("%s free of %s", bytesText(info.Free), bytesText(info.Memory))
	}
	add("memory", nil, memory)
	if a.opt.Models != "" {
		add("models", nil, strings.Join(a.models().List(), ", "))
	}
	add("sampling", probe(c, m), "the embedded model answers")
	return found
}

// probe samples one token, so that every forward kernel has run once.
func probe(c *cobra.Command, m *opened) error {
	params := api.DefaultSampling()
	params.Temperature, params.MaxTokens = 0, 1
	f, err := m.base.Sample(c.Context(), api.SampleRequest{Prompt: api.FromInts(m.tokenizer.Encode("hello", true)), Params: params, NumSamples: 1})
	if err != nil {
		return err
	}
	_, err = f.Wait(c.Context())
	return err
}

// bytesText prints a size for people.
func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
