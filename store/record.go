package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"tinkerlocal/engine/api"
)

const (
	formatKey    = "format"
	formatPrefix = "tinker-local store "
	format       = 1

	checkpointPrefix = "k/"
	runPrefix        = "r/"
	chunkPrefix      = "c"
)

// Bounds of what a record may claim.
const (
	maxTensors     = 1 << 20
	maxTableBytes  = 1 << 30
	maxOwner       = 256
	maxRecordBytes = 1 << 20
)

// record is a checkpoint's record: the key whose presence makes the checkpoint exist.
type record struct {
	Checkpoint api.Checkpoint `json:"checkpoint"`
	Seq        int64          `json:"seq"`         // order of commits: clocks may go back
	ChunkBytes int            `json:"chunk_bytes"` // of tensors and table
	TableBytes int            `json:"table_bytes"`
	Table      []sum          `json:"table"` // the chunks of the table of tensors
}

// table lists the tensors of a checkpoint with their chunks.
type table struct {
	Tensors []tensor `json:"tensors"`
}

type tensor struct {
	api.TensorInfo
	Chunks []sum `json:"chunks"`
}

func checkpointKey(p api.Path) string { return checkpointPrefix + p.Run + "/" + p.ID() }

// seal puts a hash before the JSON of v.
func seal(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(body)
	return append(h[:], body...), nil
}

// unseal verifies the hash and reads the JSON.
func unseal(b []byte, v any) error {
	if len(b) < sha256.Size || len(b) > maxRecordBytes {
		return fmt.Errorf("has %d bytes, wanted %d to %d", len(b), sha256.Size, maxRecordBytes)
	}
	if got := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(got[:], b[:sha256.Size]) {
		return fmt.Errorf("has the SHA-256 %x, wanted %x", got, b[:sha256.Size])
	}
	return json.Unmarshal(b[sha256.Size:], v)
}

// parseRecord reads the record under key.
func parseRecord(key string, b []byte) (r record, err error) {
	if err := unseal(b, &r); err != nil {
		return r, err
	}
	p := r.Checkpoint.Path
	if err := p.Check(); err != nil {
		return r, err
	}
	switch {
	case p.Kind == "" || checkpointKey(p) != key:
		return r, fmt.Errorf("is of %v", p)
	case r.ChunkBytes < 1 || r.ChunkBytes > chunkBytes || r.ChunkBytes%8 != 0:
		return r, fmt.Errorf("has chunks of %d bytes, wanted a multiple of 8 up to %d", r.ChunkBytes, chunkBytes)
	case r.TableBytes < 0 || r.TableBytes > maxTableBytes || len(r.Table) != pieces(int64(r.TableBytes), r.ChunkBytes):
		return r, fmt.Errorf("has a table of %d bytes in %d chunks", r.TableBytes, len(r.Table))
	}
	return r, nil
}

// parseTable reads and checks a table of tensors.
func parseTable(b []byte, chunk int) (t table, err error) {
	if err := json.Unmarshal(b, &t); err != nil {
		return t, err
	}
	if len(t.Tensors) > maxTensors {
		return t, fmt.Errorf("lists %d tensors, wanted at most %d", len(t.Tensors), maxTensors)
	}
	seen := map[string]bool{}
	for i, x := range t.Tensors {
		n, err := x.Bytes()
		if err != nil {
			return t, fmt.Errorf("tensor %d: %w", i, err)
		}
		if seen[x.Name] {
			return t, fmt.Errorf("tensor %q is there twice", x.Name)
		}
		seen[x.Name] = true
		if len(x.Chunks) != pieces(n, chunk) {
			return t, fmt.Errorf("tensor %q of %d bytes has %d chunks, wanted %d", x.Name, n, len(x.Chunks), pieces(n, chunk))
		}
	}
	return t, nil
}

// pieces is how many chunks n bytes take.
func pieces(n int64, chunk int) int { return int((n + int64(chunk) - 1) / int64(chunk)) }
