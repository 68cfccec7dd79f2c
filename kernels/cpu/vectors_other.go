//go:build !amd64

package cpu

func machineVariants() []string { return nil }

func vectorsOf(variant string) *vectors {
	if variant == "portable" {
		return &portable
	}
	return nil
}

// pause is a hint to the processor on amd64 only.
func pause() {}
