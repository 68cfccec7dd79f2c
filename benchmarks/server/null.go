package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine/api"
)

// nullServer answers everything that a client asks at once with the same few bytes. What a request id begins with says what its result is.
func nullServer() *http.Server {
	logProbs := api.ForwardBackwardOutput{
		LossFnOutputs: []map[string]api.TensorData{{"logprobs": api.Floats(make([]float32, datumTokens))}}, Metrics: map[string]float64{"loss:sum": 1},
	}
	sampled := api.SampleOutput{Sequences: []api.SampledSequence{{Tokens: []int32{1}, LogProbs: []float32{-1}, StopReason: "length"}}}
	results := map[string][]byte{"step": []byte(`{"metrics":{}}`), "model": []byte(`{"model_id":"session:train:0"}`)}
	results["pass"], _ = wire.EncodeForwardBackwardOutput(logProbs)
	results["sample"], _ = wire.EncodeSampleOutput(sampled, nil)
	var n atomic.Int64
	id := func(kind string) any { return map[string]any{"request_id": fmt.Sprint(kind, ":", n.Add(1))} }
	answers := map[string]func() any{
		"client/config":           func() any { no := false; return wire.ClientConfig{UsePyqwestTransport: &no} },
		"client/dynamic_config":   func() any { return struct{}{} },
		"telemetry":               func() any { return wire.TelemetryAccepted() },
		"create_session":          func() any { return wire.CreateSessionResponse{SessionID: "session"} },
		"session_heartbeat":       func() any { return struct{}{} },
		"create_sampling_session": func() any { return wire.CreateSamplingSessionResponse{SamplingSessionID: "session:sample:0"} },
		"create_model":            func() any { return id("model") },
		"get_info": func() any {
			return wire.GetInfoResponse{ModelID: "session:train:0", IsLora: true, LoraRank: 1, ModelName: model}
		},
		"forward_backward": func() any { return id("pass") },
		"optim_step":       func() any { return id("step") },
		"asample": func() any {
			return wire.Future{RequestID: fmt.Sprint("sample:", n.Add(1)), SequenceIDs: []string{"sequence"}}
		},
	}
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/api/v1/")
		body, err := io.ReadAll(r.Body)
		if answer := answers[name]; answer != nil && err == nil {
			w.Header().Set("Content-Type", wire.JSON)
			_ = json.NewEncoder(w).Encode(answer())
			return
		}
		if name != "retrieve_future" {
			http.NotFound(w, r)
			return
		}
		var asked wire.RetrieveFutureRequest
		_ = json.Unmarshal(body, &asked)
		kind, _, _ := strings.Cut(asked.RequestID, ":")
		w.Header().Set("Content-Type", wire.JSON)
		if kind == "pass" || kind == "sample" {
			w.Header().Set("Content-Type", wire.Protobuf)
		}
		_, _ = w.Write(results[kind])
	})}
}
