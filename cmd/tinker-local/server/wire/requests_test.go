package wire

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"tinkerlocal/engine/api"
)

// golden is a body that the official SDK made, with what it must decode to. See testdata/make_goldens.py.
type golden struct {
	Name        string          `json:"name"`
	Route       string          `json:"route"`
	ContentType string          `json:"content_type"`
	Encoding    string          `json:"encoding"`
	Text        string          `json:"text"`
	Base64      []byte          `json:"base64"`
	Want        json.RawMessage `json:"want"`
}

func (g golden) body() []byte {
	if g.ContentType == Protobuf {
		return g.Base64
	}
	return []byte(g.Text)
}

// goldens are the cases of all versions, by version.
func goldens(t testing.TB) map[string][]golden {
	t.Helper()
	files, err := filepath.Glob("testdata/requests-*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files of requests (%v), wanted 3", len(files), err)
	}
	out := map[string][]golden{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var all struct {
			SDK   string
			Cases []golden
		}
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[all.SDK] = all.Cases
	}
	return out
}

// decode reads a golden as the server does.
func decode(g golden, body []byte) (any, error) {
	switch {
	case g.ContentType == Protobuf:
		r, err := DecodeForwardBackward(body)
		return batchView(r), err
	case g.Route == "forward" || g.Route == "forward_backward":
		r, err := DecodeForwardBackwardJSON(body)
		return batchView(r), err
	}
	v := views[g.Route]
	r := v.request()
	err := DecodeRequest(body, r)
	if err != nil {
		return nil, err
	}
	return v.view(r), nil
}

type object = map[string]any

// batchView is what make_goldens.py writes down of a batch.
func batchView(r ForwardBackwardRequest) any {
	data := []object{}
	for _, d := range r.Input.Data {
		chunks, inputs := [][]int32{}, object{}
		for _, c := range d.ModelInput.Chunks {
			chunks = append(chunks, c.Tokens)
		}
		for name, t := range d.LossInputs {
			values := any(t.Floats)
			if t.Ints != nil {
				values = t.Ints
			}
			inputs[name] = object{"dtype": t.DType(), "shape": t.Dims(), "data": values}
		}
		data = append(data, object{"chunks": chunks, "inputs": inputs})
	}
	config := r.Input.LossConfig
	if config == nil {
		config = map[string]float64{}
	}
	return object{"model_id": r.ModelID, "seq_id": r.SeqID, "forward_only": r.ForwardOnly, "loss_fn": r.Input.LossFn, "config": config, "data": data}
}

func withMetadata(view object, o api.SaveOptions) object {
	if o.UserMetadata != nil {
		view["metadata"] = o.UserMetadata
	}
	return view
}

// views makes a request per route, and shows of it what make_goldens.py writes down.
var views = map[string]struct {
	request func() Request
	view    func(Request) any
}{
	"create_model": {func() Request { return &CreateModelRequest{} }, func(r Request) any {
		q := r.(*CreateModelRequest)
		return object{"session_id": q.SessionID, "model_seq_id": q.ModelSeqID, "request": q.API()}
	}},
	"optim_step": {func() Request { return &OptimStepRequest{} }, func(r Request) any {
		q := r.(*OptimStepRequest)
		return object{"model_id": q.ModelID, "seq_id": q.SeqID, "request": q.API()}
	}},
	"save_weights": {func() Request { return &SaveWeightsRequest{} }, func(r Request) any {
		q := r.(*SaveWeightsRequest)
		return withMetadata(object{"model_id": q.ModelID, "seq_id": q.SeqID, "name": q.Name, "ttl": q.Options().TTL.Seconds(), "overwrite": q.Options().Overwrite}, q.Options())
	}},
	"load_weights": {func() Request { return &LoadWeightsRequest{} }, func(r Request) any {
		q := r.(*LoadWeightsRequest)
		return object{"model_id": q.ModelID, "session_id": q.SessionID, "seq_id": q.SeqID, "path": q.Path, "optimizer": q.Optimizer}
	}},
	"save_weights_for_sampler": {func() Request { return &SaveWeightsForSamplerRequest{} }, func(r Request) any {
		q := r.(*SaveWeightsForSamplerRequest)
		view := object{"model_id": q.ModelID, "seq_id": q.SeqID, "name": q.Name, "session_seq_id": q.SessionSeqID}
		if q.Inflight() {
			view["inflight"] = true
		}
		return withMetadata(view, q.Options())
	}},
	"create_sampling_session": {func() Request { return &CreateSamplingSessionRequest{} }, func(r Request) any {
		q := r.(*CreateSamplingSessionRequest)
		path := ""
		if q.ModelPath != "" {
			path = q.Path.String()
		}
		return object{"session_id": q.SessionID, "seq_id": q.SessionSeqID, "base_model": q.BaseModel, "path": path}
	}},
	"asample": {func() Request { return &SampleRequest{} }, func(r Request) any {
		q := r.(*SampleRequest)
		a := q.API()
		tokens, err := a.Prompt.Tokens()
		if err != nil {
			return err
		}
		var limit *int
		if a.Params.MaxTokens > 0 {
			limit = &a.Params.MaxTokens
		}
		view := object{"session_id": q.SamplingSessionID, "seq_id": q.SeqID, "tokens": tokens, "num_samples": a.NumSamples,
			"prompt_logprobs": a.PromptLogProbs, "topk": a.TopKPromptLogProbs, "params": object{"max_tokens": limit, "seed": a.Params.Seed,
				"stop": a.Params.Stop, "stop_tokens": a.Params.StopTokens, "temperature": a.Params.Temperature, "top_k": a.Params.TopK, "top_p": a.Params.TopP}}
		for name, v := range map[string]int{"alt": a.PromptAltTokens, "last": a.PromptLogProbsLast, "sampled_topk": a.TopKSampledLogProbs} {
			if v != 0 {
				view[name] = v
			}
		}
		if a.TargetPromptLogProbs != nil {
			view["targets"] = a.TargetPromptLogProbs
		}
		return view
	}},
	"copy_weights": {func() Request { return &CopyWeightsRequest{} }, func(r Request) any {
		q := r.(*CopyWeightsRequest)
		return object{"path": q.Path, "project": q.ProjectID, "session_id": q.SessionID, "model_seq_id": q.ModelSeqID, "ttl": q.TTL().Seconds(), "token": q.AccessToken}
	}},
	"save_weights_external": {func() Request { return &SaveWeightsExternalRequest{} }, func(r Request) any {
		q := r.(*SaveWeightsExternalRequest)
		return object{"model_id": q.ModelID, "seq_id": q.SeqID, "name": q.Name, "ttl": q.Options().TTL.Seconds()}
	}},
	"join_sampling_session": {func() Request { return &JoinSamplingSessionRequest{} }, func(r Request) any { return object{"id": r.(*JoinSamplingSessionRequest).SamplingSessionID} }},
	"retrieve_futures": {func() Request { return &RetrieveFuturesRequest{} }, func(r Request) any {
		q := r.(*RetrieveFuturesRequest)
		return object{"id": q.Target.SamplingSessionID, "client": q.Target.Client, "cursor": q.Cursor, "wait": q.Wait(25 * time.Second).Seconds(), "retrieved": q.Retrieved}
	}},
	"create_custom_loss": {func() Request { return &CreateCustomLossRequest{} }, func(r Request) any {
		q := r.(*CreateCustomLossRequest)
		return object{"id": q.SessionID, "seq_id": q.SeqID, "name": q.Name}
	}},
	"finish": {func() Request { return &FinishSessionRequest{} }, func(r Request) any {
		f := r.(*FinishSessionRequest).Finish()
		return object{"reason": f.Reason, "detail": f.Detail}
	}},
	"sessions/search": {func() Request { return &SessionSearchRequest{} }, func(r Request) any {
		q := r.(*SessionSearchRequest)
		if q.Cursor != nil {
			q.Cursor.CreatedAt = q.Cursor.CreatedAt.UTC()
		}
		metadata := map[string]string{}
		maps.Copy(metadata, q.UserMetadata)
		return object{"session": q.SessionID, "name": q.DisplayName, "metadata": metadata, "projects": q.ProjectIDs, "owner": q.Owner.Type, "urns": q.Owner.URNs,
			"statuses": q.Statuses, "limit": q.PageLimit(), "cursor": q.Cursor}
	}},
	"create_session": {func() Request { return &CreateSessionRequest{} }, func(r Request) any {
		q := r.(*CreateSessionRequest)
		return object{"tags": q.Tags, "user_metadata": q.Metadata(), "sdk_version": q.SDKVersion}
	}},
	"session_heartbeat": {func() Request { return &HeartbeatRequest{} }, func(r Request) any { return object{"id": r.(*HeartbeatRequest).SessionID} }},
	"get_info":          {func() Request { return &GetInfoRequest{} }, func(r Request) any { return object{"id": r.(*GetInfoRequest).ModelID} }},
	"unload_model":      {func() Request { return &UnloadModelRequest{} }, func(r Request) any { return object{"id": r.(*UnloadModelRequest).ModelID} }},
	"retrieve_future":   {func() Request { return &RetrieveFutureRequest{} }, func(r Request) any { return object{"id": r.(*RetrieveFutureRequest).RequestID} }},
	"client/config":     {func() Request { return &ClientConfigRequest{} }, func(r Request) any { return object{"id": r.(*ClientConfigRequest).SDKVersion} }},
	"weights_info":      {func() Request { return &WeightsInfoRequest{} }, func(r Request) any { return object{"id": r.(*WeightsInfoRequest).Path} }},
	"ttl":               {func() Request { return &TTLRequest{} }, func(r Request) any { return object{"ttl": r.(*TTLRequest).TTL().Seconds()} }},
}

// TestRequests: what the official SDK sends is what is read, for every version.
func TestRequests(t *testing.T) {
	for version, cases := range goldens(t) {
		for _, g := range cases {
			t.Run(version+"/"+g.Route+"/"+g.Name, func(t *testing.T) {
				body, err := ReadBody(bytes.NewReader(g.body()), g.Encoding, 1<<20, nil)
				if err != nil {
					t.Fatal(err)
				}
				got, err := decode(g, body)
				var refused struct{ Error []string }
				if json.Unmarshal(g.Want, &refused) == nil && refused.Error != nil {
					if err == nil || string(api.CodeOf(err)) != refused.Error[0] || !strings.Contains(err.Error(), refused.Error[1]) {
						t.Errorf("got the error %v (%s), wanted %q", err, api.CodeOf(err), refused.Error)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if have, want := canonical(t, got), canonical(t, g.Want); !reflect.DeepEqual(have, want) {
					t.Errorf("got    %v\nwanted %v", have, want)
				}
			})
		}
	}
}

// canonical is v as JSON reads it, with numbers as they are written where they are integers.
func canonical(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out any
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return numbersOf(out)
}

// numbersOf takes 1 and 1.0 for equal, but keeps integers that no float64 holds. Python writes float32 values with all
// digits of a float64: they are compared as float32.
func numbersOf(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		f, _ := v.Float64()
		if f == float64(int64(f)) {
			return int64(f)
		}
		return float32(f)
	case []any:
		for i := range v {
			v[i] = numbersOf(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbersOf(v[k])
		}
	}
	return v
}
