package hf

import (
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// with puts members into a config that is good without them.
func with(members string) string { return strings.TrimSuffix(tinyConfig, "}") + "," + members + "}" }

var configCases = []struct {
	name, text, want string
}{
	{"good", tinyConfig, ""},
	{"not json", `hello`, "invalid json near byte *"},
	{"a list", `[]`, "wanted a json object, got []"},
	{"cut off", tinyConfig[:30], "invalid json: it ends too early"},
	{"nan", with(`"rms_norm_eps":NaN`), "invalid json near byte *"},
	{"deep", with(`"x":` + strings.Repeat("[", 20000)), "invalid json near byte *"},
	{"twice", with(`"hidden_size":9`), `"hidden_size" appears twice`},
	{"no type", `{}`, "model_type is missing"},
	{"type is a number", `{"model_type":3}`, "model_type is 3, wanted a string of at most 4096 bytes"},
	{"another kind of model", `{"model_type":"gpt2","n_embd":768}`, `hidden_size is missing (model_type is "gpt2")`},
	{"no layers", strings.Replace(tinyConfig, `"num_hidden_layers":1,`, "", 1), `num_hidden_layers is missing (model_type is "qwen3")`},
	{"zero", strings.Replace(tinyConfig, `"hidden_size":8`, `"hidden_size":0`, 1), "hidden_size is 0, wanted an integer of 1 to 1048576"},
	{"negative", with(`"head_dim":-4`), "head_dim is -4, wanted an integer of 1 to 16384"},
	{"absurd", strings.Replace(tinyConfig, `"vocab_size":16`, `"vocab_size":1e30`, 1), "vocab_size is 1e30, wanted an integer of 1 to 67108864"},
	{"fraction", with(`"head_dim":1.5`), "head_dim is 1.5, wanted an integer of 1 to 16384"},
	{"text for number", with(`"head_dim":"64"`), `head_dim is "64", wanted an integer of 1 to 16384`},
	{"kv heads", with(`"num_key_value_heads":3`), "num_attention_heads 2 is not a multiple of num_key_value_heads 3"},
	{"eps", with(`"rms_norm_eps":-1`), "rms_norm_eps is -1, wanted a number of 0 to 1"},
	{"theta", with(`"rope_theta":0`), "rope_theta is 0, wanted a number of 0.001 to 1e+12"},
	{"tie", with(`"tie_word_embeddings":"yes"`), `tie_word_embeddings is "yes", wanted true or false`},
	{"layer types", with(`"layer_types":["full_attention","full_attention"]`), "layer_types has 2 entries, num_hidden_layers is 1"},
	{"layer type null", with(`"layer_types":[null]`), "layer_types is [null], wanted a list of at most 4096 strings"},
	{"eos", with(`"eos_token_id":[1,-1]`), "eos_token_id is [1,-1], wanted a token id of 0 to 67108864, or a list of at most 1024"},
	{"eos text", with(`"eos_token_id":"2"`), `eos_token_id is "2", wanted a token id of 0 to 67108864, or a list of at most 1024`},
	{"rope list", with(`"rope_scaling":[]`), "rope_scaling: wanted a json object, got []"},
	{"rope factor", with(`"rope_scaling":{"rope_type":"linear","factor":-1}`), "rope_scaling: factor is -1, wanted a number of 0.001 to 1e+06"},
	{"rope without type", with(`"rope_scaling":{"factor":2}`), "rope_scaling has a factor, but no rope_type"},
	{"rope per kind", with(`"rope_parameters":{"full_attention":{}}`), "rope_parameters has settings per kind of layer, wanted one for all"},
	{"long value", with(`"head_dim":"` + strings.Repeat("y", 500) + `"`), `head_dim is "` + strings.Repeat("y", 79) + `…, wanted an integer of 1 to 16384`},
	{"text_config", `{"model_type":"x","text_config":3}`, "text_config: wanted a json object, got 3"},
}

func TestConfigErrors(t *testing.T) {
	for _, c := range configCases {
		_, err := ParseConfig([]byte(c.text))
		code := api.BadRequest
		if c.name == "rope per kind" {
			code = api.Unsupported
		}
		expect(t, c.name, err, code, c.want)
	}
}

func TestConfigForms(t *testing.T) {
	parse := func(text string) *Config {
		t.Helper()
		c, err := ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := parse(with(`"num_key_value_heads":null,"head_dim":null,"eos_token_id":7,"sliding_window":null,"rope_scaling":null`))
	if c.NumKeyValueHeads != 2 || c.HeadDim != 0 || len(c.EosTokenIDs) != 1 || c.EosTokenIDs[0] != 7 || c.BosTokenID != -1 ||
		c.RopeTheta != 10000 || c.RMSNormEps != 1e-6 || c.RopeScaling != nil || c.HasTieWordEmbeddings || c.LayerTypes != nil {
		t.Errorf("defaults: %+v", c)
	}
	const llama3 = `"factor":8.0,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192`
	for _, text := range []string{
		with(`"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3",` + llama3 + `}`),
		with(`"rope_theta":500000,"rope_scaling":{"type":"llama3",` + llama3 + `}`),
		with(`"rope_parameters":{"rope_theta":5e5,"rope_type":"llama3",` + llama3 + `}`),
	} {
		c := parse(text)
		s := c.RopeScaling
		if c.RopeTheta != 5e5 || s == nil || s.Type != "llama3" || s.Factor != 8 || s.LowFreqFactor != 1 || s.HighFreqFactor != 4 ||
			s.OriginalMaxPositionEmbeddings != 8192 || !s.Truncate || len(s.Raw) == 0 {
			t.Errorf("%s: theta %v, scaling %+v", text, c.RopeTheta, s)
		}
	}
	c = parse(with(`"rope_parameters":{"rope_theta":150000,"rope_type":"yarn","factor":32.0,"beta_fast":32.0,"beta_slow":1.0,"truncate":false,"original_max_position_embeddings":4096}`))
	if s := c.RopeScaling; s == nil || s.Type != "yarn" || s.BetaFast != 32 || s.BetaSlow != 1 || s.Truncate {
		t.Errorf("yarn: %+v", s)
	}
	if c := parse(with(`"rope_parameters":{"rope_theta":7,"rope_type":"default"},"torch_dtype":"float16","dtype":"bfloat16"`)); c.RopeScaling != nil || c.RopeTheta != 7 || c.TorchDType != "bfloat16" {
		t.Errorf("default: %+v", c)
	}
	c = parse(`{"model_type":"outer","tie_word_embeddings":true,"x":1,"text_config":` + with(`"model_type_":"inner","y":2`) + `}`)
	var x, y int
	if err := c.Decode("x", &x); err != nil || x != 1 {
		t.Error(x, err)
	}
	if err := c.Decode("y", &y); err != nil || y != 2 {
		t.Error(y, err)
	}
	if c.ModelType != "outer" || c.HiddenSize != 8 || !c.TieWordEmbeddings || !c.HasTieWordEmbeddings {
		t.Errorf("text_config: %+v", c)
	}
}

func TestGeneration(t *testing.T) {
	g, err := parseGeneration([]byte(`{"eos_token_id":[5,6],"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"max_new_tokens":2048,"bos_token_id":1}`))
	if err != nil || len(g.EosTokenIDs) != 2 || !*g.DoSample || *g.Temperature != 0.6 || *g.TopK != 20 || *g.TopP != 0.95 || *g.MaxNewTokens != 2048 {
		t.Errorf("got %+v, %v", g, err)
	}
	for text, want := range map[string]string{
		`{"top_k":-1}`:                     "top_k is -1, wanted an integer of 0 to 2147483647",
		`{"temperature":"hot"}`:            `temperature is "hot", wanted a number of 0 to 1e+06`,
		`{"max_new_tokens":0}`:             "max_new_tokens is 0, wanted an integer of 1 to 2147483647",
		`{"do_sample":1}`:                  "do_sample is 1, wanted true or false",
		`{"eos_token_id":[[1]]}`:           "eos_token_id is [[1]], wanted a token id of 0 to 67108864, or a list of at most 1024",
		`{"top_p":0.5,"top_p":0.6}`:        `"top_p" appears twice`,
		`{"top_p":0.5} {"temperature": 1}`: "invalid json: more text after the object",
	} {
		_, err := parseGeneration([]byte(text))
		expect(t, text, err, api.BadRequest, want)
	}
}
