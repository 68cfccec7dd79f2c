package api

// PluginRecord says exactly which custom loss was used: name and version are the author's, the digest pins the bytes.
type PluginRecord struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"` // SHA-256 of the module in hexadecimal
	ABI     string `json:"abi"`    // version of the interface between host and plugin, like "1.0"
}
