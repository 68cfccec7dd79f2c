package kerneltest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"

	"tinkerlocal/kernels"
)

// guardBytes lie on either side of a tensor, at least.
const guardBytes = 96

// role says what a call may do to a tensor.
type role int

const (
	input   role = iota // must not change
	output              // is compared
	scratch             // may hold anything afterwards
)

// slot is one tensor in its guarded buffer.
type slot struct {
	name    string
	role    role
	t       kernels.Tensor
	initial []byte  // of the whole buffer
	scale   float64 // size of the terms of an output that can vanish, else 0
	skip    []bool  // elements that are not compared; nil: all are
}

// rig is one device with the tensors of one case. Its methods panic with a fault on errors, which
// onRig turns into an error, so that cases read as straight lines.
type rig struct {
	dev     kernels.Device
	ops     kernels.Ops
	act     kernels.DType
	g       *gen
	slots   []*slot
	weights []kernels.Weight
	number  *float64 // result of an op that returns one
}

type fault struct{ err error }

// onRig runs f with a fresh rig and frees everything f placed. A panic of the device is an error, too.
func onRig(dev kernels.Device, seed uint64, f func(r *rig)) (err error) {
	r := &rig{dev: dev, ops: dev.Ops(), act: dev.Info().Act, g: newGen(seed)}
	defer func() {
		for _, s := range r.slots {
			dev.Free(s.t.Buf)
		}
		for _, w := range r.weights {
			w.Free()
		}
		switch p := recover().(type) {
		case nil:
		case fault:
			err = p.err
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f(r)
	return nil
}

func (r *rig) must(err error) {
	if err != nil {
		panic(fault{err})
	}
}

// in places an input.
func (r *rig) in(name string, h host) kernels.Tensor { return r.place(name, input, h).t }

// out places an output that the op overwrites.
func (r *rig) out(name string, shape ...int) kernels.Tensor {
	return r.place(name, output, unset(shape...)).t
}

// inout places an output that the op reads or adds to first.
func (r *rig) inout(name string, h host) kernels.Tensor { return r.place(name, output, h).t }

// scratch places memory the op may use as it likes.
func (r *rig) scratch(name string, shape ...int) kernels.Tensor {
	return r.place(name, scratch, unset(shape...)).t
}

func (r *rig) place(name string, role role, h host) *slot {
	dt := r.act
	if h.ints != nil {
		dt = kernels.I32
	}
	size := dt.Size()
	body := h.encode(dt)
	before := guardBytes + size*(len(r.slots)%5)
	all := bytes.Repeat([]byte{0xff}, (before+len(body)+guardBytes+7)/8*8)
	copy(all[before:], body)
	buf, err := r.dev.Alloc(int64(len(all)))
	r.must(err)
	s := &slot{name: name, role: role, t: kernels.View(buf, int64(before), dt, h.shape...), initial: all}
	r.slots = append(r.slots, s)
	r.must(r.dev.Upload(s.whole(), all))
	return s
}

// whole is the slot's buffer as one tensor.
func (s *slot) whole() kernels.Tensor {
	return kernels.View(s.t.Buf, 0, kernels.I32, len(s.initial)/4)
}

// slot finds the slot of a tensor.
func (r *rig) slot(t kernels.Tensor) *slot {
	for _, s := range r.slots {
		if s.t == t {
			return s
		}
	}
	panic(fault{errors.New("no such slot")})
}

// restore puts every tensor back to how it was placed.
func (r *rig) restore() {
	for _, s := range r.slots {
		r.must(r.dev.Upload(s.whole(), s.initial))
	}
}

// bytesOf is the memory of a tensor.
func (r *rig) bytesOf(t kernels.Tensor) []byte {
	b := make([]byte, t.Bytes())
	r.must(r.dev.Download(b, t))
	return b
}

// floats is a tensor as float32.
func (r *rig) floats(t kernels.Tensor) host {
	f, err := kernels.ReadFloats(r.dev, t)
	r.must(err)
	return host{shape: append([]int(nil), t.Shape[:t.Rank]...), data: f}
}

// collect checks guards and inputs and returns the outputs.
func (r *rig) collect() *outcome {
	o := &outcome{}
	for _, s := range r.slots {
		now := r.bytesOf(s.whole())
		lo, hi := int(s.t.Off), int(s.t.Off+s.t.Bytes())
		if d := sameBits(now[:lo], s.initial[:lo]); d != "" {
			r.must(fmt.Errorf("memory before %s changed: %s", s.name, d))
		}
		if d := sameBits(now[hi:], s.initial[hi:]); d != "" {
			r.must(fmt.Errorf("memory after %s changed: %s", s.name, d))
		}
		switch s.role {
		case input:
			if d := sameBits(now[lo:hi], s.initial[lo:hi]); d != "" {
				r.must(fmt.Errorf("input %s changed: %s", s.name, d))
			}
		case output:
			o.add(s, now[lo:hi])
		}
	}
	if r.number != nil {
		o.number = *r.number
	}
	return o
}

// outcome is the outputs of one call.
type outcome struct {
	slots  []*slot
	bits   [][]byte // elements to be compared only
	number float64
}

func (o *outcome) add(s *slot, b []byte) {
	if s.skip != nil {
		var kept []byte
		size := s.t.DType.Size()
		for i, skip := range s.skip {
			if !skip {
				kept = append(kept, b[i*size:(i+1)*size]...)
			}
		}
		b = kept
	}
	o.slots = append(o.slots, s)
	o.bits = append(o.bits, b)
}

// values is output i as float64.
func (o *outcome) values(i int) []float64 {
	dt, b := o.slots[i].t.DType, o.bits[i]
	v := make([]float64, len(b)/dt.Size())
	for j := range v {
		switch dt {
		case kernels.F64:
			v[j] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*j:]))
		case kernels.F32:
			v[j] = float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*j:])))
		case kernels.BF16:
			v[j] = float64(kernels.BF16ToF32(binary.LittleEndian.Uint16(b[2*j:])))
		case kernels.I32:
			v[j] = float64(int32(binary.LittleEndian.Uint32(b[4*j:])))
		}
	}
	return v
}

// differs describes the first output that differs, or is "".
func (o *outcome) differs(p *outcome) string {
	for i, b := range o.bits {
		if d := sameBits(b, p.bits[i]); d != "" {
			return o.slots[i].name + ": " + d
		}
	}
	if math.Float64bits(o.number) != math.Float64bits(p.number) {
		return fmt.Sprintf("%v and %v", o.number, p.number)
	}
	return ""
}
