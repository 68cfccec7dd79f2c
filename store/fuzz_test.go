package store

import (
	"crypto/sha256"
	"encoding/json"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/store/storetest"
)

// sample is a record and a table as they are stored.
func sample(f *testing.F) (key string, rec, list []byte) {
	m := newMemory()
	s, err := open(m, Options{Interval: -1})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	if _, err := storetest.Save(s, pathA, api.SaveOptions{}, storetest.Floats("x", 5, 1), storetest.Floats("y", 250_000, 2)); err != nil {
		f.Fatal(err)
	}
	p, _ := api.ParsePath(pathA)
	r, err := s.open(p)
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	if list, err = json.Marshal(table{r.list}); err != nil {
		f.Fatal(err)
	}
	key = checkpointKey(p)
	return key, m.m[key], list
}

// FuzzRecord puts hostile records, with a right hash, under a checkpoint's key; whatever they say, a store opens and no
// method of it fails badly.
func FuzzRecord(f *testing.F) {
	key, rec, _ := sample(f)
	f.Add(rec[sha256.Size:])
	f.Add([]byte(`{"chunk_bytes":8,"table_bytes":80,"table":[]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		h := sha256.Sum256(body)
		m := newMemory()
		m.m[key] = append(h[:], body...)
		s, err := open(m, Options{Interval: -1, Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p, _ := api.ParsePath(pathA)
		if _, err := s.Open(ctx, p); err == nil {
			t.Log("readable")
		}
		s.Verify(ctx)
		s.List(ctx, api.CheckpointQuery{})
		s.Collect(ctx)
		if err := s.Delete(ctx, p); err != nil && api.CodeOf(err) != api.NotFound {
			t.Errorf("delete: %v", err)
		}
	})
}

// FuzzTable: a table that is accepted has as many chunks as its tensors need.
func FuzzTable(f *testing.F) {
	_, _, list := sample(f)
	f.Add(list)
	f.Add([]byte(`{"tensors":[{"name":"a","dtype":"F32","shape":[0],"chunks":[]}]}`))
	f.Add([]byte(`{"tensors":[{"name":"a","dtype":"F64","shape":[9223372036854775807,3],"chunks":[]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseTable(b, chunkBytes)
		if err != nil {
			return
		}
		for _, x := range got.Tensors {
			n, err := x.TensorInfo.Bytes()
			if err != nil || int64(len(x.Chunks)-1)*chunkBytes >= n && n > 0 || n < 0 {
				t.Errorf("tensor %+v is accepted", x.TensorInfo)
			}
		}
	})
}

// FuzzChunk: no stored bytes decode to anything but what has the hash.
func FuzzChunk(f *testing.F) {
	c, err := newCodec(1)
	if err != nil {
		f.Fatal(err)
	}
	for _, elem := range []int{1, 4} {
		f.Add(c.encode(storetest.Floats("", 40, 1).Data, elem), uint16(160))
		f.Add(c.encode(make([]byte, 160), elem), uint16(160))
	}
	f.Fuzz(func(t *testing.T, stored []byte, n uint16) {
		dst := make([]byte, n)
		want := hash([]byte("content"))
		if c.decode(dst, stored, want) == nil && hash(dst) != want {
			t.Error("wrong content is accepted")
		}
	})
}
