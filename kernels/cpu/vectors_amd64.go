package cpu

import "golang.org/x/sys/cpu"

//go:generate go run tinkerlocal/kernels/cpu/asm -out kernels_amd64.s -stubs kernels_amd64.go -pkg cpu

func machineVariants() []string {
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		return []string{"avx2"}
	}
	return nil
}

func vectorsOf(variant string) *vectors {
	switch {
	case variant == "avx2" && len(machineVariants()) > 0:
		return &avx2
	case variant == "portable":
		return &portable
	}
	return nil
}

var avx2 = vectors{
	tile:        [tileRows + 1]tileFunc{nil, tile1, tile2, tile3, tile4, tile5, tile6},
	tileBF16:    [tileRows + 1]tileBF16Func{nil, tileBF16x1, tileBF16x2, tileBF16x3, tileBF16x4, tileBF16x5, tileBF16x6},
	wide:        wide,
	wideBF16:    wideBF16,
	transpose16: transpose16,
	copy16:      copy16,
	widen:       widen,
	add:         add,
	scale:       scale,
	normScale:   normScale,
	normGrad:    normGrad,
	sumSq:       sumSq,
	dot:         dot,
	dot3:        dot3,
	rowMax:      rowMax,
	sumSq64:     sumSq64,
	expSum:      expSum,
	expSumOnly:  expSumOnly,
	expScale:    expScale,
	softmaxGrad: softmaxGrad,
	swiglu:      swiglu,
	swigluGrad:  swigluGrad,
	rope:        rope,
	unrope:      unrope,
	adamw:       adamw,
}
