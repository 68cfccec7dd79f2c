package api

import "maps"

// PluginRecord says exactly which custom loss was used: name and version are the author's, the digest pins the bytes.
type PluginRecord struct {
	Name    string             `json:"name"`
	Version string             `json:"version"`
	Digest  string             `json:"digest"`           // SHA-256 of the module in hexadecimal
	ABI     string             `json:"abi"`              // version of the interface between host and plugin, like "1.0"
	Config  map[string]float64 `json:"config,omitempty"` // that it was called with
}

// Equal says whether r and o are of the same module with the same configuration.
func (r PluginRecord) Equal(o PluginRecord) bool {
	return r.Name == o.Name && r.Version == o.Version && r.Digest == o.Digest && r.ABI == o.ABI && maps.Equal(r.Config, o.Config)
}
