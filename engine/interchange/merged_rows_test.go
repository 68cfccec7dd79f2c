package interchange

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"tinkerlocal/kernels"
)

// TestMergedRounding: one rounding, to the nearest and ties to even, in every type.
func TestMergedRounding(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 200000 {
		v := math.Ldexp(random.Float64()*2-1, random.IntN(36)-20)
		if random.IntN(2) == 0 { // near ties, which a rounding to float32 in between would hit
			bits := uint16(random.Uint32())
			h, next := float64(kernels.BF16ToF32(bits)), float64(kernels.BF16ToF32(bits+1))
			if random.IntN(2) == 0 {
				h, next = float64(kernels.F16ToF32(bits)), float64(kernels.F16ToF32(bits+1))
			}
			v = (h+next)/2 + math.Ldexp(h, -40)*float64(random.IntN(3)-1)
			if !(math.Abs(v) < 60000 && math.Abs(v) > 1e-30) {
				continue
			}
		}
		b, bad := narrow(nil, []float64{v, v}, kernels.BF16)
		nearest(t, v, float64(kernels.BF16ToF32(binary.LittleEndian.Uint16(b[2:]))), func(k int) float64 {
			return float64(kernels.BF16ToF32(binary.LittleEndian.Uint16(b) + uint16(k)))
		}, bad)
		h, bad := narrow(nil, []float64{v, v}, kernels.F16)
		nearest(t, v, float64(kernels.F16ToF32(binary.LittleEndian.Uint16(h[2:]))), func(k int) float64 {
			return float64(kernels.F16ToF32(binary.LittleEndian.Uint16(h) + uint16(k)))
		}, bad)
	}
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16, kernels.F16} {
		for _, bits := range []uint32{0x7fffffff, 0xffffffff, 0x7fc00000, 0x7f800001, 0xff800000} {
			v := float64(math.Float32frombits(bits))
			if _, bad := narrow(nil, []float64{1, 2, 3, 4, 5, v}, d); bad != 5 {
				t.Errorf("%s: %x is not refused (%d)", d, bits, bad)
			}
			if _, bad := narrow(nil, []float64{1, v, 3, 4}, d); bad != 1 {
				t.Errorf("%s: %x is not refused (%d)", d, bits, bad)
			}
		}
	}
	for d, big := range map[kernels.DType]float64{kernels.F32: 1e39, kernels.BF16: 3.4e38, kernels.F16: 65520} {
		if _, bad := narrow(nil, []float64{1, big}, d); bad != 1 {
			t.Errorf("%s: %g is not refused (%d)", d, big, bad)
		}
	}
	if _, bad := narrow(nil, []float64{65519}, kernels.F16); bad >= 0 {
		t.Error("float16: 65519 is refused")
	}
}

// nearest: neither neighbour of got is nearer to v, and with the same distance got's last bit is 0.
func nearest(t *testing.T, v, got float64, neighbour func(int) float64, bad int) {
	t.Helper()
	if bad >= 0 {
		t.Fatalf("%g is refused", v)
	}
	for _, k := range []int{-1, 1} {
		n := neighbour(k)
		if math.IsNaN(n) || math.IsInf(n, 0) || got == 0 {
			continue
		}
		if math.Abs(n-v) < math.Abs(got-v) {
			t.Fatalf("%.17g became %.17g, %.17g is nearer", v, got, n)
		}
		if n != got && math.Abs(n-v) == math.Abs(got-v) && math.Remainder(got, 2*(n-got)) != 0 {
			t.Fatalf("%.17g became %.17g, a tie to odd", v, got)
		}
	}
}

// TestSetMember: only the member changes in a config.json.
func TestSetMember(t *testing.T) {
	for _, c := range [][2]string{
		{`{"a": 1}`, "{\n  \"k\": false,\"a\": 1}"},
		{`{"k" : true , "a": [ "k" ]}`, `{"k" : false , "a": [ "k" ]}`},
		{` {"a": {"k": 1}, "k":null}`, ` {"a": {"k": 1}, "k":false}`},
		{`{"k": 1, "text_config": {"k":true}}`, `{"k": false, "text_config": {"k":false}}`},
		{`{"text_config": {"j":true}}`, "{\n  \"k\": false,\"text_config\": {\"j\":true}}"},
	} {
		if got, err := setMember([]byte(c[0]), "k", "false"); err != nil || string(got) != c[1] {
			t.Errorf("%s became %s (%v), wanted %s", c[0], got, err, c[1])
		}
	}
}
