package wire

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestListQuery: queries as the SDK's REST client writes them.
func TestListQuery(t *testing.T) {
	for text, want := range map[string]ListQuery{
		"":                    {Page: api.Page{Limit: 1000}},
		"limit=20&offset=40":  {Page: api.Page{Limit: 20, Offset: 40}},
		"limit=0":             {Page: api.Page{Limit: 1000}},
		"limit=5000&offset=0": {Page: api.Page{Limit: 1000}},
		"limit=1&access_scope=accessible&project_id=p": {Page: api.Page{Limit: 1}, Accessible: true, ProjectID: "p"},
		"access_scope=owned":                           {Page: api.Page{Limit: 1000}},
	} {
		q, err := url.ParseQuery(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeListQuery(q); err != nil || got != want {
			t.Errorf("%s: %+v (%v), wanted %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"limit=-1":                    `limit is "-1", wanted an integer from 0`,
		"offset=x":                    `offset is "x"`,
		"limit=1e3":                   `limit is "1e3"`,
		"access_scope=all":            `access_scope is "all", wanted "owned" or "accessible"`,
		"offset=99999999999999999999": `offset is "99999999999999999999"`,
	} {
		q, _ := url.ParseQuery(text)
		if _, err := DecodeListQuery(q); err == nil || !strings.Contains(err.Error(), want) || api.CodeOf(err) != api.BadRequest {
			t.Errorf("%s: %v, wanted %s", text, err, want)
		}
	}
}

// TestSaveMetadata: what a client notes on a checkpoint goes into its save and comes back in lists; what is no text, as its JSON.
func TestSaveMetadata(t *testing.T) {
	const body = `{"model_id":"m","seq_id":1,"path":"x","user_metadata":{"a":"b","n":3,"none":null}}`
	var state SaveWeightsRequest
	var sampler SaveWeightsForSamplerRequest
	for _, r := range []interface {
		Request
		Options() api.SaveOptions
	}{&state, &sampler} {
		if err := DecodeRequest([]byte(body), r); err != nil {
			t.Fatal(err)
		}
		notes := r.Options().UserMetadata
		if len(notes) != 2 || notes["a"] != "b" || notes["n"] != "3" {
			t.Errorf("%T: the notes are %q", r, notes)
		}
		text, err := json.Marshal(CheckpointOf(api.Checkpoint{Path: api.Path{Run: "m", Kind: api.KindState, Name: "x"}, UserMetadata: notes}))
		if err != nil || !strings.Contains(string(text), `"user_metadata":{"a":"b","n":"3"}`) {
			t.Errorf("in a list: %s, %v", text, err)
		}
	}
}
