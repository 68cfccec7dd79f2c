package api

import "time"

// Checkpoint describes one saved set of weights. The store fills in what is marked so.
type Checkpoint struct {
	Path      Path       `json:"tinker_path"`
	Owner     string     `json:"owner"`
	BaseModel string     `json:"base_model"`
	Lora      LoraConfig `json:"lora_config"` // with the seed that was used
	Version   int64      `json:"version"`     // of the run's weights
	Step      int64      `json:"step"`        // optimiser steps
	Optimizer bool       `json:"optimizer"`   // the moments are there
	Public    bool       `json:"public"`      // everybody may read it; see Publish
	Bytes     int64      `json:"size_bytes"`  // of all tensors. To Create: as many as will be written, to know if they fit

	Plugins []PluginRecord `json:"plugins,omitempty"` // the custom losses that the weights were trained with, in the order of their first use

	UserMetadata map[string]string `json:"user_metadata,omitempty"` // by the store: SaveOptions.UserMetadata; who may read the checkpoint reads it, too. Do not change it

	Created time.Time `json:"time"`                // by the store
	Expires time.Time `json:"expires_at,omitzero"` // by the store; zero: never
	Stored  int64     `json:"stored_bytes"`        // by the store: compressed; parts shared with other checkpoints are counted here too
	Written int64     `json:"written_bytes"`       // by the store: what this save added to the disk
	Tensors int       `json:"tensors"`             // by the store
	SHA256  string    `json:"sha256"`              // by the store: of names, types, shapes and contents; equal for equal tensors
}

// ReadableBy says whether who may read the checkpoint: its owner, or everybody when it is public.
func (c Checkpoint) ReadableBy(who string) bool { return c.Public || c.Owner == who }

// RunRecord is what is kept of a training run. It is its owner's alone: publishing a checkpoint does not
// publish the run's metadata.
type RunRecord struct {
	ID           string            `json:"training_run_id"`
	Owner        string            `json:"model_owner"`
	BaseModel    string            `json:"base_model"`
	Lora         LoraConfig        `json:"lora_config"`
	UserMetadata map[string]string `json:"user_metadata,omitempty"`
	Created      time.Time         `json:"created"` // zero: set by the store at the first PutRun
	LastRequest  time.Time         `json:"last_request_time"`

	LastCheckpoint        *Checkpoint `json:"last_checkpoint,omitempty"`         // by the store: the newest training state
	LastSamplerCheckpoint *Checkpoint `json:"last_sampler_checkpoint,omitempty"` // by the store
}

// Shared is the part of r that readers of the run's public checkpoints may see.
func (r RunRecord) Shared() RunRecord {
	r.UserMetadata = nil
	for _, c := range []**Checkpoint{&r.LastCheckpoint, &r.LastSamplerCheckpoint} {
		if *c != nil && !(*c).Public {
			*c = nil
		}
	}
	return r
}
