package remote

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestProtocolCovers: whoever changes a type that goes over the connection is told to think of programs of another version.
func TestProtocolCovers(t *testing.T) {
	var b strings.Builder
	seen := map[reflect.Type]bool{}
	var write func(reflect.Type)
	write = func(x reflect.Type) {
		fmt.Fprint(&b, x, " ", x.Kind(), "\n")
		switch x.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			write(x.Elem())
		case reflect.Struct:
			if seen[x] || x.PkgPath() == "time" {
				return
			}
			seen[x] = true
			for f := range x.Fields() {
				fmt.Fprint(&b, f.Name, " ", f.Tag.Get("json"), " ")
				write(f.Type)
			}
		}
	}
	for _, v := range []any{
		hello{}, pathCall{}, runCall{}, pathsCall{}, createCall{}, created{}, opened{}, api.Error{}, api.CheckpointQuery{}, api.CheckpointPage{}, api.RunQuery{},
		api.RunPage{}, api.RunRecord{}, []api.Path{}, api.Collected{}, []api.Damage{},
	} {
		write(reflect.TypeOf(v))
	}
	sum := sha256.Sum256([]byte(b.String()))
	const version, shape = 1, "d2e7a9bad80285b5"
	if got := hex.EncodeToString(sum[:8]); got != shape || Protocol != version {
		t.Errorf("the types that go over the connection have the shape %s at version %d, this test knows %s at version %d: "+
			"if a program with the old types would not understand one with the new ones, or the other way round, Protocol is to be one more; then change both here\n%s",
			got, Protocol, shape, version, b.String())
	}
}
