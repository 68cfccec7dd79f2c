package local

import "golang.org/x/sys/cpu"

// CPUFeatures names the instruction sets of this processor that matter to the CPU device.
func CPUFeatures() []string {
	var have []string
	for _, f := range []struct {
		name string
		has  bool
	}{
		{"avx2", cpu.X86.HasAVX2}, {"fma", cpu.X86.HasFMA}, {"avx512f", cpu.X86.HasAVX512F},
		{"avx512_bf16", cpu.X86.HasAVX512BF16}, {"amx_bf16", cpu.X86.HasAMXBF16},
		{"neon", cpu.ARM64.HasASIMD}, {"sve", cpu.ARM64.HasSVE},
	} {
		if f.has {
			have = append(have, f.name)
		}
	}
	if have == nil {
		have = []string{"no vector extensions known here"}
	}
	return have
}
