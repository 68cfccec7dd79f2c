package api

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckMetadata(t *testing.T) {
	full := map[string]string{}
	for i := range MaxMetadataEntries {
		full[fmt.Sprint(i)] = ""
	}
	for _, m := range []map[string]string{nil, {}, {"a": "b", "é": "\x00"}, {"k": strings.Repeat("x", 99)}, full} {
		if err := CheckMetadata(m, 1000); err != nil {
			t.Errorf("%.40v: %v", m, err)
		}
	}
	full["more"] = ""
	for want, m := range map[string]map[string]string{
		"user_metadata has 257 entries, wanted at most 256": full,
		"user_metadata has an entry with an empty name":     {"": "b"},
		`user_metadata: the name "\xff" is not UTF-8`:       {"\xff": "b"},
		`user_metadata: the value of "a" is not UTF-8`:      {"a": "\xff"},
		"user_metadata has 1001 bytes, wanted at most 1000": {"k": strings.Repeat("x", 1000)},
	} {
		if err := CheckMetadata(m, 1000); err == nil || err.Error() != want || CodeOf(err) != BadRequest {
			t.Errorf("got %v, wanted %s", err, want)
		}
	}
}
