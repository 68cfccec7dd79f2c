package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"

	"google.golang.org/protobuf/encoding/protowire"
)

// load asks a server as the SDK does: each piece of work is a request and the fetching of its result.
func load(url, kind, seconds string) error {
	transport := &http.Transport{MaxIdleConnsPerHost: 2 * clients}
	c := &asker{url + "/api/v1/", &http.Client{Transport: transport}}
	var session struct {
		ID string `json:"session_id"`
	}
	if err := c.json("create_session", map[string]any{}, &session); err != nil {
		return err
	}
	return measure(seconds, func(i int) (func() error, error) {
		seq := 0
		if kind == "sample" {
			var sampler struct {
				ID string `json:"sampling_session_id"`
			}
			if err := c.json("create_sampling_session", map[string]any{"session_id": session.ID, "sampling_session_seq_id": i, "base_model": model}, &sampler); err != nil {
				return nil, err
			}
			return func() error {
				seq++
				body, err := json.Marshal(map[string]any{
					"sampling_session_id": sampler.ID, "seq_id": seq, "num_samples": 1, "prompt": chunks(), "sampling_params": map[string]any{"max_tokens": 1},
				})
				if err != nil {
					return err
				}
				return c.work("asample", "application/json", body, "application/x-protobuf")
			}, nil
		}
		var made struct {
			ID string `json:"model_id"`
		}
		if err := c.future("create_model", map[string]any{
			"session_id": session.ID, "model_seq_id": i, "base_model": model,
			"lora_config": map[string]any{"rank": 1, "seed": i, "train_unembed": false, "train_mlp": false},
		}, &made); err != nil {
			return nil, err
		}
		return func() error {
			seq++
			switch kind {
			case "step":
				body, err := json.Marshal(map[string]any{"model_id": made.ID, "seq_id": seq, "adam_params": map[string]any{"learning_rate": 1e-4}})
				if err != nil {
					return err
				}
				return c.work("optim_step", "application/json", body, "application/json")
			case "json":
				body, err := json.Marshal(map[string]any{"model_id": made.ID, "seq_id": seq, "forward_backward_input": map[string]any{
					"loss_fn": "cross_entropy", "data": []any{map[string]any{"model_input": chunks(), "loss_fn_inputs": map[string]any{
						"target_tokens": map[string]any{"dtype": "int64", "data": prompt()}, "weights": map[string]any{"dtype": "float32", "data": datum().LossInputs["weights"].Floats},
					}}},
				}})
				if err != nil {
					return err
				}
				return c.work("forward_backward", "application/json", body, "application/json")
			}
			return c.work("forward_backward", "application/x-protobuf", passBody(made.ID, seq), "application/x-protobuf")
		}, nil
	})
}

func chunks() any {
	return map[string]any{"chunks": []any{map[string]any{"type": "encoded_text", "tokens": prompt()}}}
}

type asker struct {
	url  string
	http *http.Client
}

// ask posts a body and gives the answer of a request that was granted.
func (c *asker) ask(path, kind string, body []byte, accept string) ([]byte, error) {
	r, err := http.NewRequest(http.MethodPost, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("X-API-Key", "tml-benchmark")
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Accept", accept)
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || bytes.Contains(out, []byte(`"error"`))) {
		err = fmt.Errorf("%s: %s %.300s", path, resp.Status, out)
	}
	return out, err
}

func (c *asker) json(path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := c.ask(path, "application/json", body, "application/json")
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// future asks for work and reads its result.
func (c *asker) future(path string, in, out any) error {
	var f struct {
		ID string `json:"request_id"`
	}
	if err := c.json(path, in, &f); err != nil {
		return err
	}
	return c.json("retrieve_future", map[string]any{"request_id": f.ID}, out)
}

// work asks for work and fetches its result.
func (c *asker) work(path, kind string, body []byte, accept string) error {
	answer, err := c.ask(path, kind, body, "application/json")
	if err != nil {
		return err
	}
	var f struct {
		ID string `json:"request_id"`
	}
	if err := json.Unmarshal(answer, &f); err != nil {
		return err
	}
	_, err = c.ask("retrieve_future", "application/json", fmt.Appendf(nil, `{"request_id":%q,"allow_metadata_only":true}`, f.ID), accept)
	return err
}

// passBody is forward_backward as the SDK writes it.
func passBody(model string, seq int) []byte {
	message := func(b []byte, n protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), m)
	}
	number := func(b []byte, n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	tensor := func(name string, values []byte, dtype uint64) []byte {
		return message(message(nil, 1, []byte(name)), 2, number(message(nil, 1, values), 3, dtype))
	}
	d := datum()
	var ids, targets, weights []byte
	for i, id := range prompt() {
		ids = binary.LittleEndian.AppendUint32(ids, uint32(id))
		targets = binary.LittleEndian.AppendUint64(targets, uint64(d.LossInputs["target_tokens"].Ints[i]))
		weights = binary.LittleEndian.AppendUint32(weights, math.Float32bits(d.LossInputs["weights"].Floats[i]))
	}
	in := message(nil, 1, message(nil, 1, message(nil, 1, ids)))
	in = message(message(in, 2, tensor("target_tokens", targets, 2)), 2, tensor("weights", weights, 1))
	b := number(message(nil, 1, []byte(model)), 2, uint64(seq))
	return message(message(b, 3, in), 4, []byte("cross_entropy"))
}
