package wire

import (
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
