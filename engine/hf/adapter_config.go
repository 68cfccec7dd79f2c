package hf

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
)

const (
	maxAdapterRank = 1 << 14
	maxAlpha       = 1e6
	maxTargets     = 1 << 16 // some adapters list every module's full path
)

// neutralKeys are members of adapter_config.json that do not change what a trained adapter computes:
// bookkeeping, training settings, choice of modules (the tensors tell), or settings of features that have
// a switch of their own. Every other member, also one of a newer PEFT, must be null, false, empty or 0.
var neutralKeys = []string{
	"auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode",
	"layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version",
	"qalora_group_size", "revision", "runtime_config",
}

// plainInits are the values of init_lora_weights that leave the base's weights as they are. The others
// (pissa, olora, corda, loftq, …) change the base when the adapter is attached.
var plainInits = []string{`true`, `false`, `"gaussian"`, `"eva"`, `"orthogonal"`}

// parseAdapterConfig reads adapter_config.json. Tensors is left empty, and Targets when the config has a
// pattern instead of a list.
func parseAdapterConfig(b []byte) (*Adapter, error) {
	a := &Adapter{}
	var names []string
	all := map[string]json.RawMessage{}
	err := object(b, func(name string, value json.RawMessage) error {
		names = append(names, name)
		all[name] = value
		return nil
	})
	if err != nil {
		return nil, err
	}
	f := &fields{all: all}
	if kind := f.text("peft_type"); f.err == nil && kind != "" && kind != "LORA" {
		return nil, unsupported("peft_type is %s, wanted \"LORA\"", quote(kind))
	}
	for _, key := range []string{"r", "lora_alpha"} {
		if f.err == nil && !f.has(key) {
			f.err = bad("%s is missing", key)
		}
	}
	a.Rank = f.integer("r", 0, 1, maxAdapterRank)
	a.Alpha = f.number("lora_alpha", 0, 0, maxAlpha)
	a.RSLoRA = f.boolean("use_rslora")
	a.BaseModel = f.text("base_model_name_or_path")
	a.Revision = f.text("revision")
	if raw := f.raw("target_modules"); raw != nil && raw[0] == '"' {
		f.text("target_modules") // "all-linear", or a pattern of paths
	} else {
		a.Targets = f.texts("target_modules", maxTargets)
		slices.Sort(a.Targets)
		a.Targets = slices.Compact(a.Targets)
	}
	if f.err != nil {
		return nil, f.err
	}
	for _, name := range names {
		if err := a.plain(name, f.all[name]); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// plain refuses a member that makes the adapter something other than plain LoRA.
func (a *Adapter) plain(name string, value json.RawMessage) error {
	if slices.Contains(neutralKeys, name) || isEmpty(value) {
		return nil
	}
	ok, want := false, ""
	switch name {
	case "peft_type", "r", "lora_alpha", "use_rslora", "target_modules":
		return nil // read above
	case "task_type":
		ok, want = string(value) == `"CAUSAL_LM"`, `"CAUSAL_LM"`
	case "bias":
		ok, want = string(value) == `"none"`, `"none"`
	case "init_lora_weights":
		ok, want = slices.Contains(plainInits, string(value)), "an initialisation that leaves the base as it is"
	case "rank_pattern":
		ok, want = allEqual(value, float64(a.Rank)), "the same rank for all modules"
	case "alpha_pattern":
		ok, want = allEqual(value, a.Alpha), "the same alpha for all modules"
	default:
		want = "none: only plain LoRA on linear layers is supported"
	}
	if !ok {
		return unsupported("%s is %s, wanted %s", clip(name), clip(string(value)), want)
	}
	return nil
}

// isEmpty reports whether a value means that a feature is not used.
func isEmpty(value []byte) bool {
	var compact bytes.Buffer
	if json.Compact(&compact, value) != nil {
		return false
	}
	switch compact.String() {
	case "null", "false", "{}", "[]", `""`, "0", "0.0":
		return true
	}
	return false
}

// allEqual reports whether every member of the object is the number want.
func allEqual(value []byte, want float64) bool {
	return object(value, func(_ string, v json.RawMessage) error {
		var n *float64
		if json.Unmarshal(v, &n) != nil || n == nil || *n != want {
			return bad("differs")
		}
		return nil
	}) == nil
}

// ConfigText is the adapter_config.json that PEFT reads back. It holds what PEFT needs to build the
// adapter; what it leaves out has PEFT's default in every version.
func (a *Adapter) ConfigText() ([]byte, error) {
	orNull := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	modules := a.Targets
	if len(modules) == 0 && len(a.Tensors) > 0 {
		modules = targets(a.Tensors)
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(struct {
		BaseModel     *string  `json:"base_model_name_or_path"`
		Bias          string   `json:"bias"`
		FanInFanOut   bool     `json:"fan_in_fan_out"`
		InferenceMode bool     `json:"inference_mode"`
		InitWeights   bool     `json:"init_lora_weights"`
		Alpha         float64  `json:"lora_alpha"`
		Dropout       float64  `json:"lora_dropout"`
		ModulesToSave []string `json:"modules_to_save"` // null when there are none
		PeftType      string   `json:"peft_type"`
		Rank          int      `json:"r"`
		Revision      *string  `json:"revision"`
		Targets       []string `json:"target_modules"`
		TaskType      string   `json:"task_type"`
		RSLoRA        bool     `json:"use_rslora"`
	}{
		BaseModel: orNull(a.BaseModel), Bias: "none", InferenceMode: true, InitWeights: true, Alpha: a.Alpha,
		ModulesToSave: slices.Sorted(maps.Keys(a.Saved)),
		PeftType:      "LORA", Rank: a.Rank, Revision: orNull(a.Revision), Targets: modules, TaskType: "CAUSAL_LM", RSLoRA: a.RSLoRA,
	})
	return text.Bytes(), err
}
