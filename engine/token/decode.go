package token

// decodePlan is what the decoder field asks for.
type decodePlan struct {
	byteLevel bool
}

// Decode returns the text of ids. With skipSpecial, special tokens are left out. Ids that no token
// has, negative ones included, are left out too, as in the reference library. Bytes that do not form
// characters become U+FFFD.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	var raw []byte
	for _, id := range ids {
		if t.shows(id, skipSpecial) {
			raw = append(raw, t.out[id]...)
		}
	}
	return string(appendLossy(make([]byte, 0, len(raw)), raw))
}

// shows tells whether id takes part in decoding.
func (t *Tokenizer) shows(id int32, skipSpecial bool) bool {
	return id >= 0 && int(id) < len(t.known) && t.known[id] && !(skipSpecial && t.special[id])
}

// readDecoder reads the decoder field.
func readDecoder(b []byte) (decodePlan, error) {
	if isNull(b) {
		return decodePlan{}, unsupported("no decoder is not supported")
	}
	kind, err := typeOf(b)
	if err != nil {
		return decodePlan{}, err
	}
	if kind == "ByteLevel" {
		_, err := fields(b, "type", "add_prefix_space", "trim_offsets", "use_regex")
		return decodePlan{byteLevel: true}, err
	}
	return decodePlan{}, unsupported("type %q is not supported", clip(kind))
}
