package token

// normalizer changes text before it is split. Its input is valid UTF-8.
type normalizer func(string) string

// readNormalizers reads the normalizer field, a Sequence flattened.
func readNormalizers(b []byte) ([]normalizer, error) {
	if isNull(b) {
		return nil, nil
	}
	kind, err := typeOf(b)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "NFC":
		if _, err := fields(b, "type"); err != nil {
			return nil, err
		}
		return []normalizer{nfc}, nil
	case "Sequence":
		var all []normalizer
		err := sequence(b, "normalizers", func(v []byte) error {
			n, err := readNormalizers(v)
			all = append(all, n...)
			return err
		})
		return all, err
	}
	return nil, unsupported("type %q is not supported", kind)
}
