// Package kerneltest is the conformance suite that any kernels.Device must pass.
//
//	func TestConformance(t *testing.T) { kerneltest.Run(t, open) }
//	func TestThreads(t *testing.T)     { kerneltest.Invariance(t, oneThread, twoThreads) }
//	func TestAllocs(t *testing.T)      { kerneltest.Allocs(t, open) }
//
// # Values
//
// Every op runs on the device, on the float64 reference and on the float32 reference ("plain":
// sequential loops, every operation rounded), from the same seeded float32 inputs. With
//
//	e(x) = max_i |x_i - ref_i| / (|ref_i| + rms(ref))
//
// over all elements of one output, pooled over several seeds when the output is small, the device
// passes when e(device) <= f*e(plain) + 4 ulp, with f = 2 for forward and 3 for backward ops and ulp
// the spacing of the device's dtype at 1. The bound is thus a ratio to what honest float32 arithmetic loses on
// the same numbers. |ref_i| makes it relative for large elements and rms(ref) absolute for small
// ones, which are the result of cancellation. Outputs that can vanish altogether (the gradient through the
// softmax of one key) state the size of the terms that cancel instead of an rms.
//
// What a backward op reads from its forward (rstd, v, lse, o) is an input there: the reference
// computes it, rounded to float32.
//
// # Memory
//
// Each tensor lies in a larger buffer, at varying offsets, and everything around it and every output
// beforehand is filled with 0xff bytes, which are NaN in every float type. So an element that is not
// written, or is added to where it should be overwritten, or a value from outside that is used, shows
// as NaN. After the call the surroundings and the inputs must be unchanged. Then inputs are restored, the call is
// repeated, and must give the same bits.
//
// # Bits
//
// The canonical reductions of package kernels are held by comparing bits: items (tokens, sequences,
// data) alone and in many batches, so that experts have other loads; adapter gradients of a list of data cut into calls in several
// ways; attention by prefill, in chunks, token by token, and on pages; Logits against LogProbs.
package kerneltest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/ref"
)

// Opener makes a fresh device for a test; the suite closes it.
type Opener func(t *testing.T) kernels.Device

// Run runs the whole suite on a device, except for what needs more than one ([Invariance]) or the
// allocation counter ([Allocs]).
func Run(t *testing.T, open func(t *testing.T) kernels.Device) {
	each(t, open, suite(), func(t *testing.T, dev kernels.Device, c check) {
		report(t, c.run(dev))
	})
}

// Allocs checks that no op call allocates host memory, after a first call that may grow scratch.
func Allocs(t *testing.T, open func(t *testing.T) kernels.Device) {
	var checks []check
	for _, c := range opCases() {
		checks = append(checks, check{c.op, c.name, func(dev kernels.Device) error { return c.allocs(dev) }})
	}
	each(t, open, checks, func(t *testing.T, dev kernels.Device, c check) {
		report(t, c.run(dev))
	})
}

// Invariance checks that several devices, for instance one kernel variant with different numbers of
// threads, give the same bits for every op.
func Invariance(t *testing.T, opens ...func(t *testing.T) kernels.Device) {
	devs := make([]kernels.Device, len(opens))
	for i, open := range opens {
		devs[i] = open(t)
		defer closeDevice(t, devs[i])
	}
	for _, op := range groups(opCases()) {
		t.Run(op.name, func(t *testing.T) {
			for _, c := range op.cases {
				if err := c.same(devs...); err != nil {
					if errors.Is(err, kernels.ErrUnimplemented) {
						t.Skip("skipped: not implemented")
					}
					t.Errorf("%s: %v", c.name, err)
				}
			}
		})
	}
}

// check is one thing to hold a device to. It returns what is wrong instead of failing a test, so that
// the suite's own tests can plant a fault and see it found.
type check struct {
	op, name string
	run      func(dev kernels.Device) error
}

// suite lists every check on a single device.
func suite() []check {
	var all []check
	for _, c := range opCases() {
		all = append(all, check{c.op, c.name, c.check})
	}
	all = append(all, packingChecks()...)
	all = append(all, streamChecks()...)
	all = append(all, agreementChecks()...)
	all = append(all, memoryChecks()...)
	return append(all, refusalChecks()...)
}

// opCases lists every case of every op.
func opCases() []opCase {
	var all []opCase
	all = append(all, rowCases()...)
	all = append(all, linearCases()...)
	all = append(all, ropeCases()...)
	all = append(all, attentionCases()...)
	all = append(all, moeCases()...)
	return append(all, headCases()...)
}

// each runs checks as subtests, one per op, on one device.
func each(t *testing.T, open func(t *testing.T) kernels.Device, checks []check, run func(*testing.T, kernels.Device, check)) {
	dev := open(t)
	defer closeDevice(t, dev)
	for len(checks) > 0 {
		n := 1
		for n < len(checks) && checks[n].op == checks[0].op {
			n++
		}
		group := checks[:n]
		checks = checks[n:]
		t.Run(group[0].op, func(t *testing.T) {
			for _, c := range group {
				t.Run(strings.ReplaceAll(c.name, "/", " per "), func(t *testing.T) { run(t, dev, c) })
			}
		})
	}
}

func report(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, kernels.ErrUnimplemented) {
		t.Skip("skipped: not implemented")
	}
	if err != nil {
		t.Error(err)
	}
}

func closeDevice(t *testing.T, dev kernels.Device) {
	if err := dev.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// opCase is one call of one op. build draws inputs and places them on a rig, and returns the call.
type opCase struct {
	op, name string
	factor   float64 // of the plain computation's error that the device may have
	seeds    int     // how many draws are pooled
	build    func(r *rig) func() error
}

// group is the cases of one op.
type group struct {
	name  string
	cases []opCase
}

func groups(cases []opCase) []group {
	var gs []group
	for _, c := range cases {
		if len(gs) == 0 || gs[len(gs)-1].name != c.op {
			gs = append(gs, group{name: c.op})
		}
		g := &gs[len(gs)-1]
		g.cases = append(g.cases, c)
	}
	return gs
}

// check compares values with the reference, and looks at memory and repetition on the way.
func (c opCase) check(dev kernels.Device) error {
	oracle, plain := ref.Open(), ref.OpenFloat32()
	defer oracle.Close()
	defer plain.Close()
	j := newJudge(c.factor, dev.Info().Act)
	for seed := range max(c.seeds, 1) {
		got, err := c.run(dev, uint64(seed))
		if err != nil {
			return err
		}
		want, err := c.run(oracle, uint64(seed))
		if err != nil {
			return fmt.Errorf("on the reference: %w", err)
		}
		rounded, err := c.run(plain, uint64(seed))
		if err != nil {
			return fmt.Errorf("on the float32 reference: %w", err)
		}
		if err := j.add(got, want, rounded); err != nil {
			return fmt.Errorf("seed %d: %w", seed, err)
		}
	}
	return j.verdict()
}

// run makes the call twice on a device and returns its outputs.
func (c opCase) run(dev kernels.Device, seed uint64) (out *outcome, err error) {
	err = onRig(dev, seed, func(r *rig) {
		call := c.build(r)
		var first *outcome
		for range 2 {
			r.restore()
			r.must(call())
			out = r.collect()
			if first == nil {
				first = out
			} else if d := first.differs(out); d != "" {
				r.must(fmt.Errorf("the same call again gives other bits: %s", d))
			}
		}
	})
	return out, err
}

// same compares the outputs of several devices bit by bit.
func (c opCase) same(devs ...kernels.Device) error {
	var first *outcome
	for i, dev := range devs {
		out, err := c.run(dev, 0)
		if err != nil {
			return err
		}
		if first == nil {
			first = out
		} else if d := first.differs(out); d != "" {
			return fmt.Errorf("%s and %s differ: %s", devs[0].Info().Name, devs[i].Info().Name, d)
		}
	}
	return nil
}

// allocs counts host allocations of the call.
func (c opCase) allocs(dev kernels.Device) error {
	return onRig(dev, 0, func(r *rig) {
		call := c.build(r)
		r.restore()
		r.must(call())
		var err error
		// The counter sees the whole process, also what the runtime allocates now and then, for instance
		// for goroutines that block. An op that allocates does it in every attempt.
		n := 1.0
		for attempt := 0; attempt < 3 && n > 0 && err == nil; attempt++ {
			n = testing.AllocsPerRun(5, func() {
				if e := call(); e != nil {
					err = e
				}
			})
		}
		r.must(err)
		if n != 0 {
			r.must(fmt.Errorf("%v host allocations per call, wanted none", n))
		}
	})
}

// sameBits describes the first difference between two results, or is "".
func sameBits(a, b []byte) string {
	if len(a) != len(b) {
		return fmt.Sprintf("%d bytes and %d bytes", len(a), len(b))
	}
	if bytes.Equal(a, b) {
		return ""
	}
	n, first := 0, -1
	for i := range a {
		if a[i] != b[i] {
			n++
			if first < 0 {
				first = i
			}
		}
	}
	return fmt.Sprintf("%d of %d bytes, the first at byte %d", n, len(a), first)
}
