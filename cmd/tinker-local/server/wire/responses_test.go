package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

var update = flag.Bool("update", false, "write testdata/responses.json; then run testdata/check_sdk.py --write with every version")

// response is a body of ours, for a class of the SDK.
type response struct {
	Name   string `json:"name"`
	Class  string `json:"class"`
	Text   string `json:"text,omitempty"`
	Base64 []byte `json:"base64,omitempty"`
	Finite bool   `json:"finite"`          // no NaN in it, which the SDK's own JSON could not hold
	Since  string `json:"since,omitempty"` // versions before this one do not ask for it
	want   any    // what the SDK must make of it: a part of it is enough
}

var nan, inf = float32(math.NaN()), float32(math.Inf(1))

// outputs are results of forward_backward, of every shape.
func outputs() map[string]api.ForwardBackwardOutput {
	matrix := func(k int, v ...float32) api.TensorData {
		return api.TensorData{Floats: v, Shape: []int{len(v) / k, k}}
	}
	return map[string]api.ForwardBackwardOutput{
		"plain": {LossFnOutputType: "loss.LossReturn", Metrics: map[string]float64{"loss:sum": 1.5, "a:mean": -1e-300, "b:max": 0, "of/a.plugin": 2},
			LossFnOutputs: []map[string]api.TensorData{{"logprobs": api.Floats([]float32{-0.5, -1.25, 0.1})}, {"logprobs": api.Floats([]float32{-3})}}},
		"NaN": {Metrics: map[string]float64{"loss:sum": math.NaN(), "up:max": math.Inf(1), "down:min": math.Inf(-1)},
			LossFnOutputs: []map[string]api.TensorData{{"logprobs": api.Floats([]float32{nan, inf, -inf})}}},
		"ragged": {LossFnOutputs: []map[string]api.TensorData{
			{"logprobs": matrix(2, -1, -2, -3, -4), "ids": api.Ints([]int64{1 << 60, -2})},
			{"logprobs": matrix(2, -5, -6), "ids": api.Ints([]int64{3})},
			{"logprobs": matrix(3, -7, -8, -9), "ids": api.Ints([]int64{4})},
			{"logprobs": api.Floats([]float32{-10}), "ids": api.Ints([]int64{5})},
		}},
		"empty":     {Metrics: map[string]float64{"loss:sum": 0}},
		"no values": {LossFnOutputs: []map[string]api.TensorData{{"logprobs": api.Floats([]float32{})}, {"logprobs": api.Floats([]float32{1})}}},
		"no fields": {LossFnOutputs: []map[string]api.TensorData{{}, {}}},
	}
}

func samples() map[string]api.SampleOutput {
	return map[string]api.SampleOutput{
		"plain": {Sequences: []api.SampledSequence{
			{Tokens: []int32{1, 2147483647}, LogProbs: []float32{-0.5, -1e-7}, RawLogProbs: []float32{-1, -2}, StopReason: "stop"},
			{Tokens: []int32{3}, LogProbs: []float32{0}, StopReason: "length"},
		}},
		"prompt": {Sequences: []api.SampledSequence{{Tokens: []int32{3}, LogProbs: []float32{-0.25}, StopReason: "length"}},
			PromptLogProbs:     api.PromptLogProbs{api.NoLogProb(), -0.1, -20},
			TopKPromptLogProbs: [][]api.TokenLogProb{nil, {{Token: 7, LogProb: -0.1}, {Token: 0, LogProb: -2.5}}, {{Token: 9, LogProb: -1}}}},
		"without": {Sequences: []api.SampledSequence{{Tokens: []int32{}, StopReason: "stop"}}},
		"scores": {
			Sequences: []api.SampledSequence{
				{Tokens: []int32{3, 4}, LogProbs: []float32{-0.25, -0.5}, StopReason: "length", TopKLogProbs: [][]api.TokenLogProb{{{Token: 3, LogProb: -0.25}, {Token: 9, LogProb: -2}}, {{Token: 4, LogProb: -0.5}, {Token: 1, LogProb: -1}}}},
				{Tokens: []int32{}, StopReason: "stop", TopKLogProbs: [][]api.TokenLogProb{}},
			},
			PromptLogProbs:       api.PromptLogProbs{api.NoLogProb(), api.NoLogProb(), -20},
			TargetPromptLogProbs: [][]float32{{0, -1.5}, {-0.5, -3}},
			PromptAltTokens:      [][]api.TokenLogProb{{{Token: 7, LogProb: -1}, {Token: 8, LogProb: -2}, {Token: 7, LogProb: -1}}, {{Token: 2147483647, LogProb: -3}, {Token: 0, LogProb: -4}, {Token: 5, LogProb: -5}}},
		},
		"sparse": {
			Sequences:            []api.SampledSequence{{Tokens: []int32{3}, LogProbs: []float32{-0.25}, StopReason: "length"}},
			TargetPromptLogProbs: [][]float32{{}, {-0.5, -3}, {}, {-1}},
			PromptAltTokens:      [][]api.TokenLogProb{},
		},
	}
}

// targets are the tokens that samples were asked for.
func targets(t *testing.T) map[string]*Targets {
	t.Helper()
	out := map[string]*Targets{}
	for name, text := range map[string]string{
		"scores": `{"data":[-1,5,6,7],"dtype":"int64","shape":[2,2]}`,
		"sparse": `{"data":[5,6,7],"dtype":"int64","shape":[4,1000],"sparse_crow_indices":[0,0,2,2,3],"sparse_col_indices":[0,999,3]}`,
	} {
		out[name] = &Targets{}
		if err := json.Unmarshal([]byte(text), out[name]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// responses are all bodies that are held by goldens.
func responses(t *testing.T) []response {
	t.Helper()
	var all []response
	binary := func(name, class string, b []byte, err error, want any) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, response{Name: name, Class: class, Base64: b, want: want})
	}
	text := func(name, class string, b []byte, err error, want any) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, response{Name: name, Class: class, Text: string(b), Finite: true, want: want})
	}
	for _, name := range []string{"plain", "NaN", "ragged", "empty", "no values", "no fields"} {
		out := outputs()[name]
		b, err := EncodeForwardBackwardOutput(out)
		binary("output/"+name, "ForwardBackwardOutput", b, err, outputView(out))
		b, err = EncodeForwardBackwardOutputJSON(out)
		text("JSON output/"+name, "ForwardBackwardOutput", b, err, outputView(out))
	}
	for _, name := range []string{"plain", "prompt", "without", "scores", "sparse"} {
		out, asked := samples()[name], targets(t)[name]
		b, err := EncodeSampleOutput(out, asked)
		binary("sample/"+name, "SampleResponse", b, err, sampleView(out, asked))
		if asked != nil {
			all[len(all)-1].Since = "0.38.0"
		} else {
			b, err = EncodeSampleOutputJSON(out)
			text("JSON sample/"+name, "SampleResponse", b, err, sampleView(out, nil))
		}
	}
	for _, c := range jsonResponses() {
		b, err := json.Marshal(c.value)
		text(c.class, c.class, b, err, json.RawMessage(b))
	}
	b, err := json.Marshal(OptimStepOf(api.OptimStepOutput{Metrics: map[string]float64{"grad_norm": math.NaN(), "a": math.Inf(1), "b": math.Inf(-1), "c": 0.1}}))
	text("OptimStepResponse", "OptimStepResponse", b, err, json.RawMessage(b))
	all[len(all)-1].Finite = false
	return all
}

func jsonResponses() []struct {
	class string
	value any
} {
	yes, no := true, false
	path := api.Path{Run: "S1:train:0", Kind: api.KindState, Name: "x"}
	sampler := api.Path{Run: "S1:train:0", Kind: api.KindSampler, Name: "final"}
	when := time.Date(2026, 11, 27, 22, 0, 0, 0, time.FixedZone("", 3600))
	c := api.Checkpoint{Path: path, Owner: "me", BaseModel: "b", Lora: api.DefaultLora(), Created: when, Bytes: 1 << 40}
	s := api.Checkpoint{Path: sampler, Created: when, Expires: when.Add(time.Hour), Public: true}
	external := api.Checkpoint{Path: api.Path{Run: path.Run, Kind: api.KindExternal, Name: "out"}, Created: when, Bytes: 7, UserMetadata: map[string]string{"k": "v"}}
	run := api.RunRecord{ID: path.Run, Owner: "me", BaseModel: "b", Lora: api.DefaultLora(), LastRequest: when, LastCheckpoint: &c,
		LastSamplerCheckpoint: &s, UserMetadata: map[string]string{"k": "v"}}
	return []struct {
		class string
		value any
	}{
		{"ClientConfigResponse", ClientConfig{Tokens: &yes, UsePyqwestTransport: &no, ChunkDatums: 100, TellOfSamples: &yes, JoinSamplingSession: &yes, CreateViaLoad: &yes}},
		{"ClientDynamicConfigResponse", ClientDynamicConfig{RefreshSeconds: 60}},
		{"CreateSessionResponse", CreateSessionResponse{SessionID: "S", WarningMessage: "w"}},
		{"SessionHeartbeatResponse", Heartbeat()},
		{"TelemetryResponse", TelemetryAccepted()},
		{"HealthResponse", Healthy()},
		{"GetServerCapabilitiesResponse", CapabilitiesResponse{[]SupportedModel{{ModelName: "b", MaxContextLength: 4096, Trainable: true, Sampleable: true}}}},
		{"CreateModelResponse", ModelCreated("m")},
		{"GetInfoResponse", GetInfoResponse{ModelID: "m", ModelData: ModelData{Arch: "qwen3", ModelName: "b", TokenizerID: "t"}, IsLora: true, LoraRank: 8, ModelName: "b"}},
		{"UnloadModelResponse", UnloadModelResponse{"m"}},
		{"SaveWeightsResponse", WeightsSaved(path)},
		{"SaveWeightsForSamplerResponse", WeightsSaved(sampler)},
		{"SaveWeightsForSamplerResponseInternal", SamplerSaved("S:sample:0")},
		{"LoadWeightsResponse", WeightsLoaded(path, "m")},
		{"WeightsInfoResponse", WeightsInfoOf(c)},
		{"CreateSamplingSessionResponse", CreateSamplingSessionResponse{"S:sample:0"}},
		{"GetSamplerResponse", SamplerResponse{"S:sample:0", "b", sampler.String()}},
		{"UntypedAPIFuture", Future{RequestID: "r", ModelID: "m", SequenceIDs: []string{"q0", "q1"}}},
		{"RequestFailedResponse", FailedOf(api.Errorf(api.BadRequest, "datum 3 is wrong"))},
		{"TrainingRun", TrainingRunOf(run)},
		{"TrainingRunsResponse", TrainingRunsOf(api.RunPage{Runs: []api.RunRecord{run}, Total: 7}, api.Page{Limit: 1, Offset: 2})},
		{"CheckpointsListResponse", CheckpointsOf(api.CheckpointPage{Checkpoints: []api.Checkpoint{c, s}, Total: 2}, &api.Page{Limit: 100})},
		{"ListSessionsResponse", SessionsResponse{[]string{"S"}}},
		{"GetSessionResponse", SessionResponse{TrainingRunIDs: []string{path.Run}, SamplerIDs: []string{}}},
		{"CheckpointArchiveUrlResponse", ArchiveResponse{"http://localhost/x", when.UTC()}},
		{"AuditLogResponse", NoAudit()},
		{"BillingUsageResponse", NoBilling()},
		{"Checkpoint", CheckpointOf(external)},
		{"JoinSamplingSessionResponse", JoinedSamplingSession(3)},
		{"FuturesRetrieveResponse", RetrieveFuturesResponse{[]Completion{CompletionOf("a", false), CompletionOf("b", true)}, 7}},
		{"CopyWeightsResponse", Copied(path)},
		{"SaveWeightsExternalResponseInternal", ExternalSaved(external)},
		{"ExternalWeightsUrlsResponse", ExternalURLsResponse{map[string]string{"a": "http://localhost/a"}, when.UTC()}},
		{"SessionSearchResponse", SessionSearchResponse{[]SessionSummary{
			{SessionID: "S", CreatedAt: when.UTC(), Owner: "me", ProjectID: "p", Status: SessionActive(), Checkpoints: 3, DisplayName: "n", UserMetadata: map[string]string{"k": "v"}, StoredBytes: 9},
			{SessionID: "T", CreatedAt: when.UTC(), Owner: "me", Status: (&SessionFinish{"errored", "no luck"}).Status()},
			{SessionID: "U", CreatedAt: when.UTC(), Owner: "me"},
		}, &SessionCursor{when.UTC(), "U"}}},
		{"CurrentCheckpointStorageUsageResponse", StorageUsageResponse{[]StorageUsage{StorageUsageOf("p", "urn", "me", 2, 5e8)}}},
		{"AuthTokenResponse", AuthTokenResponse{"a.b.c"}},
		{"SelfApiKeyResponse", APIKeyOf(7, "me")},
	}
}

// finiteOr is v, or the name of what JSON has not.
func finiteOr(v float32) any {
	if v-v == 0 {
		return v
	}
	return json.RawMessage(appendNumber(nil, float64(v), 32))
}

func floatsView(v []float32) []any {
	out := make([]any, len(v))
	for i := range v {
		out[i] = finiteOr(v[i])
	}
	return out
}

func outputView(out api.ForwardBackwardOutput) any {
	if out.LossFnOutputType == "" {
		out.LossFnOutputType = "ArrayRecord"
	}
	list := []object{}
	for _, o := range out.LossFnOutputs {
		view := object{}
		for name, t := range o {
			values := any(floatsView(t.Floats))
			if t.Ints != nil {
				values = t.Ints
			}
			view[name] = object{"dtype": t.DType(), "shape": t.Dims(), "data": values, "numpy": values}
		}
		list = append(list, view)
	}
	metrics := map[string]number{}
	for name, v := range out.Metrics {
		if name == "of/a.plugin" {
			name += ":unique"
		}
		metrics[name] = number(v)
	}
	return object{"loss_fn_output_type": out.LossFnOutputType, "loss_fn_outputs": list, "metrics": metrics}
}

// sampleView has what was not asked for only as far as all versions know it.
func sampleView(out api.SampleOutput, t *Targets) any {
	sequences := []object{}
	for _, s := range out.Sequences {
		view := object{"tokens": s.Tokens, "logprobs": s.LogProbs, "stop_reason": s.StopReason}
		if len(s.TopKLogProbs) > 0 {
			view["topk_logprobs"] = s.TopKLogProbs
		}
		sequences = append(sequences, view)
	}
	view := object{"sequences": sequences, "prompt_logprobs": out.PromptLogProbs, "topk_prompt_logprobs": out.TopKPromptLogProbs}
	if t != nil {
		tensor := object{"dtype": "float32", "shape": t.dims, "data": slices.Concat(out.TargetPromptLogProbs...)}
		if t.sparse {
			tensor["sparse_crow_indices"], tensor["sparse_col_indices"] = t.crow, t.cols
		}
		view["target_prompt_logprobs"] = tensor
	}
	if rows := out.PromptAltTokens; rows != nil {
		ids, lps := []int32{}, []float32{}
		for _, row := range rows {
			for _, x := range row {
				ids, lps = append(ids, x.Token), append(lps, x.LogProb)
			}
		}
		view["prompt_alt_tokens"] = object{"tokens": ids, "logprobs": lps, "shape": []int{len(rows), columns(rows)}}
	}
	return view
}

// TestResponses: our bodies are those that the official SDK has read, and it has read what they say.
func TestResponses(t *testing.T) {
	all := responses(t)
	b, err := json.Marshal(struct {
		Cases []response `json:"cases"`
	}{all})
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/responses.json"
	if *update {
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(file)
	if err != nil || string(stored) != string(b)+"\n" {
		t.Errorf("the bodies are not those of %s (%v): run this test with -update and testdata/check_sdk.py --write, and read the diff", file, err)
	}
	digest := sha256.Sum256(stored)
	read, fields := map[string]int{}, map[string]bool{}
	for _, version := range []string{"0.16.1", "0.25.0", "0.38.0"} {
		var decoded struct {
			SHA256  string
			Decoded map[string]json.RawMessage
		}
		b, err := os.ReadFile("testdata/decoded-" + version + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &decoded); err != nil {
			t.Fatal(err)
		}
		if decoded.SHA256 != hex.EncodeToString(digest[:]) {
			t.Errorf("%s has read another %s", version, file)
		}
		for _, c := range all {
			got, ok := decoded.Decoded[c.Name]
			if !ok {
				continue // that version has no such class
			}
			read[c.Name]++
			for key := range keys(canonical(t, got)) {
				fields[c.Name+"."+key] = true
			}
			have, want := canonical(t, got), canonical(t, c.want)
			if c.Class == "SampleResponse" || c.Class == "ForwardBackwardOutput" {
				if !reflect.DeepEqual(have, want) {
					t.Errorf("%s: %s: the SDK reads %v, wanted %v", version, c.Name, have, want)
				}
			} else if part := missing(have, want); part != "" {
				t.Errorf("%s: %s: the SDK reads %v, wanted %v at %s", version, c.Name, have, want, part)
			}
		}
	}
	for _, c := range all {
		if read[c.Name] == 0 {
			t.Errorf("%s: no version has read it", c.Name)
		}
		for key := range keys(canonical(t, c.want)) {
			if !fields[c.Name+"."+key] {
				t.Errorf("%s: no version knows the field %s", c.Name, key)
			}
		}
	}
}

func keys(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// missing names what have lacks of want: the SDK's classes have more fields, and old ones fewer.
func missing(have, want any) string {
	h, ok := have.(map[string]any)
	w, both := want.(map[string]any)
	if !ok || !both {
		if list, ok := want.([]any); ok {
			others, _ := have.([]any)
			if len(others) != len(list) {
				return "the length"
			}
			for i := range list {
				if part := missing(others[i], list[i]); part != "" {
					return part
				}
			}
			return ""
		}
		if reflect.DeepEqual(have, want) {
			return ""
		}
		return "a value"
	}
	for key, value := range w {
		if got, known := h[key]; known {
			if part := missing(got, value); part != "" {
				return key + ", " + part
			}
		}
	}
	return ""
}
