package api

import "unicode/utf8"

// Bounds of what people note on their runs and checkpoints: lists carry it.
const (
	MaxMetadataEntries         = 256
	MaxRunMetadataBytes        = 128 << 10
	MaxCheckpointMetadataBytes = 16 << 10
)

// CheckMetadata says whether m is text of at most so many bytes, names and values together, under names that are not empty.
func CheckMetadata(m map[string]string, bytes int) error {
	if len(m) > MaxMetadataEntries {
		return Errorf(BadRequest, "user_metadata has %d entries, wanted at most %d", len(m), MaxMetadataEntries)
	}
	sum := 0
	for name, value := range m {
		switch {
		case name == "":
			return Errorf(BadRequest, "user_metadata has an entry with an empty name")
		case !utf8.ValidString(name):
			return Errorf(BadRequest, "user_metadata: the name %s is not UTF-8", quoted(name))
		case !utf8.ValidString(value):
			return Errorf(BadRequest, "user_metadata: the value of %s is not UTF-8", quoted(name))
		}
		sum += len(name) + len(value)
	}
	if sum > bytes {
		return Errorf(BadRequest, "user_metadata has %d bytes, wanted at most %d", sum, bytes)
	}
	return nil
}
