package hf

import (
	"encoding/json"
	"slices"
	"strings"
)

// maxShards bounds the files of one checkpoint that are mapped and kept open.
const maxShards = 1024

// shardList is one file of a sharded checkpoint and the tensors it holds.
type shardList struct {
	file    string
	tensors []string
}

// parseIndex reads model.safetensors.index.json: {"weight_map": {tensor: file, …}, …}. The files are in
// the order of their names.
func parseIndex(b []byte) ([]shardList, error) {
	top, err := members(b)
	if err != nil {
		return nil, err
	}
	if isNull(top["weight_map"]) {
		return nil, bad("weight_map is missing")
	}
	byFile := map[string]*shardList{}
	err = object(top["weight_map"], func(name string, value json.RawMessage) error {
		var file string
		if value[0] != '"' || json.Unmarshal(value, &file) != nil {
			return bad("tensor %s: file is %s, wanted a string", quote(name), clip(string(value)))
		}
		if err := plainName(file); err != nil {
			return in("tensor "+quote(name), err)
		}
		if !strings.HasSuffix(file, ".safetensors") {
			return unsupported("tensor %s: file is %s, wanted a name that ends in .safetensors", quote(name), quote(file))
		}
		s := byFile[file]
		if s == nil {
			if len(byFile) == maxShards {
				return bad("more than %d files", maxShards)
			}
			s = &shardList{file: file}
			byFile[file] = s
		}
		s.tensors = append(s.tensors, name)
		return nil
	})
	if err != nil {
		return nil, in("weight_map", err)
	}
	if len(byFile) == 0 {
		return nil, bad("weight_map is empty")
	}
	shards := make([]shardList, 0, len(byFile))
	for _, s := range byFile {
		shards = append(shards, *s)
	}
	slices.SortFunc(shards, func(a, b shardList) int { return strings.Compare(a.file, b.file) })
	return shards, nil
}
