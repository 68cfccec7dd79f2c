package token

import (
	"fmt"
	"strings"
)

// normalizer changes text before it is split. Its input is valid UTF-8.
type normalizer struct {
	apply func(string) string
	grows bool // it can make text several times as long
}

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
		return []normalizer{{apply: nfc}}, nil
	case "Prepend":
		f, err := fields(b, "type", "prepend")
		if err != nil {
			return nil, err
		}
		prefix, err := f.text("prepend")
		if err == nil {
			err = checkGrowth("prepend", prefix, "")
		}
		return []normalizer{{apply: func(s string) string {
			if s == "" {
				return s
			}
			return prefix + s
		}}}, err
	case "Replace":
		old, text, err := readReplace(b)
		return []normalizer{{func(s string) string { return strings.ReplaceAll(s, old, text) }, len(text) > len(old)}}, err
	case "Sequence":
		var all []normalizer
		err := sequence(b, "normalizers", func(v []byte) error {
			n, err := readNormalizers(v)
			if all = append(all, n...); err != nil {
				return err
			}
			if len(all) > maxSteps {
				return fmt.Errorf("more than %d steps", maxSteps)
			}
			growing := 0
			for _, n := range all {
				if n.grows {
					growing++
				}
			}
			if growing > 2 {
				return unsupported("more than two Replace by something longer are not supported")
			}
			return nil
		})
		return all, err
	}
	return nil, unsupported("type %q is not supported", clip(kind))
}
