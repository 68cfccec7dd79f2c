package kerneltest

import (
	"math"
	"strings"
	"testing"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// The suite is only worth what it finds, so these tests plant faults in a good device and look which
// checks notice.

// planted is the float32 reference with some ops replaced.
type planted struct {
	kernels.Device
	ops kernels.Ops
}

func (p planted) Ops() kernels.Ops { return p.ops }

func plant(wrap func(dev kernels.Device, good kernels.Ops) kernels.Ops) planted {
	dev := ref.OpenFloat32()
	return planted{dev, wrap(dev, dev.Ops())}
}

// failing runs the checks whose group begins with op and whose name contains name.
func failing(dev kernels.Device, op, name string) (failed, passed []string) {
	for _, c := range suite() {
		if !strings.HasPrefix(c.op, op) || !strings.Contains(c.name, name) {
			continue
		}
		if err := c.run(dev); err != nil {
			failed = append(failed, c.op+" "+c.name)
		} else {
			passed = append(passed, c.op+" "+c.name)
		}
	}
	return failed, passed
}

// orderOps sums K in two halves when there is more than one token, and in one piece otherwise: right
// within rounding, but a token's bits depend on its batch.
type orderOps struct {
	kernels.Ops
	dev kernels.Device
}

func (o orderOps) Linear(a kernels.LinearArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	t, k := a.X.Shape[0], a.X.Shape[1]
	if t == 1 || k < 2 {
		return o.Ops.Linear(a)
	}
	x, err := kernels.ReadFloats(o.dev, a.X)
	if err != nil {
		return err
	}
	halves := [2]kernels.LinearArgs{a, a}
	halves[1].Bias, halves[1].Res = kernels.Tensor{}, kernels.Tensor{}
	for i := range halves {
		h := &halves[i]
		part := make([]float32, len(x))
		for j := range x {
			if (j%k < k/2) == (i == 0) {
				part[j] = x[j]
			}
		}
		h.X, _ = kernels.NewTensor(o.dev, kernels.F32, t, k)
		defer o.dev.Free(h.X.Buf)
		if err := kernels.WriteFloats(o.dev, h.X, part); err != nil {
			return err
		}
		h.Y, _ = kernels.NewTensor(o.dev, kernels.F32, a.Y.Shape[0], a.Y.Shape[1])
		defer o.dev.Free(h.Y.Buf)
		if !a.V.None() {
			h.V, _ = kernels.NewTensor(o.dev, kernels.F32, a.V.Shape[0], a.V.Shape[1])
			defer o.dev.Free(h.V.Buf)
		}
		if err := o.Ops.Linear(*h); err != nil {
			return err
		}
	}
	if !a.V.None() {
		if err := o.Ops.Add(a.V, halves[0].V, halves[1].V); err != nil {
			return err
		}
	}
	return o.Ops.Add(a.Y, halves[0].Y, halves[1].Y)
}

// TestPlantedOrder: a kernel whose order of sums depends on the batch passes every comparison of values and
// fails the comparison of bits.
func TestPlantedOrder(t *testing.T) {
	dev := plant(func(dev kernels.Device, good kernels.Ops) kernels.Ops { return orderOps{good, dev} })
	if failed, passed := failing(dev, "linear", ""); len(failed) > 0 || len(passed) < 30 {
		t.Errorf("values: %d cases passed, failed: %v", len(passed), failed)
	}
	failed, passed := failing(dev, "packing", "linear")
	if len(failed) < 4 {
		t.Errorf("the order-dependent kernel is not found: failed %v, passed %v", failed, passed)
	}
	for _, c := range linearCases() {
		if c.op == "linear" && strings.Contains(c.name, "T=17 K=257") {
			if err := c.same(ref.OpenFloat32(), dev); err == nil {
				t.Errorf("%s: the order-dependent kernel has the same bits as the other one", c.name)
			}
		}
	}
}

// faultOps has one fault, named by which.
type faultOps struct {
	kernels.Ops
	dev   kernels.Device
	which string
	calls *int
}

// past writes the element after a tensor.
func (o faultOps) past(t kernels.Tensor) {
	t.Off += t.Bytes()
	t.Rank, t.Shape = 1, [4]int{1}
	_ = kernels.WriteFloats(o.dev, t, []float32{1})
}

func (o faultOps) SwiGLU(h, gu kernels.Tensor) error {
	err := o.Ops.SwiGLU(h, gu)
	*o.calls++
	if err != nil {
		return err
	}
	one := kernels.View(h.Buf, h.Off, h.DType, 1)
	switch o.which {
	case "writes past the end":
		o.past(h)
	case "other bits the second time":
		v, _ := kernels.ReadFloats(o.dev, one)
		if *o.calls%2 == 0 {
			v[0] = math.Nextafter32(v[0], 1)
		}
		_ = kernels.WriteFloats(o.dev, one, v)
	case "leaves an element":
		_ = kernels.WriteFloats(o.dev, one, []float32{float32(math.NaN())})
	case "writes its input":
		_ = kernels.WriteFloats(o.dev, kernels.View(gu.Buf, gu.Off, gu.DType, 1), []float32{7})
	case "imprecise":
		v, _ := kernels.ReadFloats(o.dev, h)
		for i := range v {
			v[i] *= 1 + 3e-6
		}
		_ = kernels.WriteFloats(o.dev, h, v)
	case "panics":
		panic("planted")
	case "allocates":
		sink = make([]byte, 100)
	}
	return nil
}

var sink []byte

func (o faultOps) LinearBackward(a kernels.LinearBackwardArgs) error {
	if err := a.Check(kernels.F32); err != nil {
		return err
	}
	seen := map[*kernels.LoRA]bool{}
	var total []func() error
	for _, s := range a.Spans {
		if s.LoRA == nil || seen[s.LoRA] {
			continue
		}
		seen[s.LoRA] = true
		switch o.which {
		case "overwrites gradients":
			_ = o.Ops.Zero(s.LoRA.DA)
		case "adds a call's gradients at once":
			for _, g := range []kernels.Tensor{s.LoRA.DA, s.LoRA.DB} {
				old, _ := kernels.NewTensor(o.dev, kernels.F32, g.Shape[:g.Rank]...)
				defer o.dev.Free(old.Buf)
				_ = o.Ops.Copy(old, g)
				_ = o.Ops.Zero(g)
				total = append(total, func() error { return o.Ops.Add(g, old, g) })
			}
		}
	}
	if err := o.Ops.LinearBackward(a); err != nil {
		return err
	}
	for _, add := range total {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

func (o faultOps) Attention(a kernels.AttentionArgs) error {
	if o.which == "decode rounds differently" && a.Q.Shape[0] == 1 {
		a.Scale = math.Nextafter32(a.Scale, 1)
	}
	return o.Ops.Attention(a)
}

func (o faultOps) Logits(a kernels.LogitsArgs) error {
	err := o.Ops.Logits(a)
	if err == nil && o.which == "lse of its own" {
		v, _ := kernels.ReadFloats(o.dev, a.LSE)
		for i := range v {
			v[i] = math.Nextafter32(v[i], 0)
		}
		_ = kernels.WriteFloats(o.dev, a.LSE, v)
	}
	return err
}

func (o faultOps) Embed(y kernels.Tensor, w kernels.Weight, ids kernels.Tensor) error {
	err := o.Ops.Embed(y, w, ids)
	if o.which == "swallows errors" {
		return nil
	}
	return err
}

// TestPlantedFaults names, for each fault, a group of checks that must notice, and one that need not.
func TestPlantedFaults(t *testing.T) {
	for _, c := range []struct{ which, op, name, passes string }{
		{"writes past the end", "swiglu", "", "add"},
		{"other bits the second time", "swiglu", "", "add"},
		{"leaves an element", "swiglu", "", "add"},
		{"writes its input", "swiglu", "T=17", "add"},
		{"imprecise", "swiglu", "T=17", "add"},
		{"panics", "swiglu", "", "add"},
		{"overwrites gradients", "linear backward", "spans 1", "swiglu"},
		{"adds a call's gradients at once", "gradients of a stream", "linear", "linear backward"},
		{"decode rounds differently", "agreement", "attention", "attention"},
		{"lse of its own", "agreement", "logits", "logits"},
		{"swallows errors", "refusals", "rows", "embed"},
	} {
		dev := plant(func(dev kernels.Device, good kernels.Ops) kernels.Ops {
			return faultOps{good, dev, c.which, new(int)}
		})
		if failed, passed := failing(dev, c.op, c.name); len(failed) == 0 || c.op != "agreement" && c.op != "swiglu" && len(passed) > 0 {
			t.Errorf("%s: not found by %v", c.which, passed)
		}
		if failed, _ := failing(dev, c.passes, ""); len(failed) > 0 && c.passes != c.op {
			t.Errorf("%s: also found by %v", c.which, failed)
		}
	}
}

// TestPlantedAllocation: the allocation counter counts.
func TestPlantedAllocation(t *testing.T) {
	dev := plant(func(dev kernels.Device, good kernels.Ops) kernels.Ops {
		return faultOps{good, dev, "allocates", new(int)}
	})
	for _, c := range rowCases() {
		if c.op == "swiglu" {
			if err := c.allocs(dev); err == nil {
				t.Errorf("%s: the planted allocation is not found", c.name)
			}
			return
		}
	}
}

// TestJudge: the tolerance is a ratio to the plain computation's error, with a floor.
func TestJudge(t *testing.T) {
	s := &slot{name: "y", t: kernels.Tensor{DType: kernels.F32}}
	result := func(v ...float32) *outcome {
		return &outcome{slots: []*slot{s}, bits: [][]byte{host{data: v}.encode(kernels.F32)}}
	}
	const ulp = 0x1p-23
	for _, c := range []struct {
		dev, plain float32
		ok         bool
	}{
		{1, 1, true},
		{1 + 4*ulp, 1, true}, // half of the floor: the scale is |1| + rms
		{1 + 16*ulp, 1, false},
		{1 + 16*ulp, 1 + 6*ulp, true},
		{1 + 32*ulp, 1 + 6*ulp, false},
		{float32(math.NaN()), 1, false},
		{float32(math.Inf(1)), 1, false},
	} {
		j := newJudge(2, kernels.F32)
		err := j.add(result(c.dev, 1), result(1, 1), result(c.plain, 1))
		if err == nil {
			err = j.verdict()
		}
		if (err == nil) != c.ok {
			t.Errorf("device %v, plain %v: %v", c.dev, c.plain, err)
		}
	}
}

// loadOps adds up a token's experts in descending order when an expert has more than three tokens: right within rounding, but a
// token's bits depend on its neighbours' choices.
type loadOps struct {
	kernels.Ops
	dev kernels.Device
}

func (o loadOps) Experts(a kernels.ExpertsArgs) error {
	begin, err := kernels.ReadInts(o.dev, a.Begin)
	if err != nil {
		return err
	}
	busy := false
	for e := range begin[1:] {
		busy = busy || begin[e+1]-begin[e] > 3
	}
	if !busy {
		return o.Ops.Experts(a)
	}
	turned := a
	turned.IDs, turned.Gate, turned.Rows = o.reversed(a.IDs), o.reversed(a.Gate), o.reversed(a.Rows)
	err = o.Ops.Experts(turned)
	for _, t := range []kernels.Tensor{turned.IDs, turned.Gate, turned.Rows} {
		o.dev.Free(t.Buf)
	}
	return err
}

// reversed is a copy with the columns of each row of four-byte elements in the other order.
func (o loadOps) reversed(t kernels.Tensor) kernels.Tensor {
	b, n := make([]byte, t.Bytes()), t.Shape[1]
	c := make([]byte, len(b))
	_ = o.dev.Download(b, t)
	for i := range t.Len() {
		j := i/n*n + n - 1 - i%n
		copy(c[4*j:4*j+4], b[4*i:])
	}
	r, _ := kernels.NewTensor(o.dev, t.DType, t.Shape[0], n)
	_ = o.dev.Upload(r, c)
	return r
}

// TestPlantedLoad: an order of experts that depends on their load passes the comparison of values and fails that of bits.
func TestPlantedLoad(t *testing.T) {
	dev := plant(func(dev kernels.Device, good kernels.Ops) kernels.Ops { return loadOps{good, dev} })
	if failed, passed := failing(dev, "experts", ""); len(failed) > 0 || len(passed) < 40 {
		t.Errorf("values: %d cases passed, failed: %v", len(passed), failed)
	}
	if failed, passed := failing(dev, "packing", "experts"); len(failed) == 0 {
		t.Errorf("the load-dependent kernel is not found: %v passed", passed)
	}
}
