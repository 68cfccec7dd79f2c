// Package tinkerloss is what a Go loss module for tinker-local is written with. Loss plugin ABI 1.0.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -ldflags='-s -w' -o my.wasm .
//
// A loss reads the log-probabilities of a batch and writes its value and, for each log-probability, the weight
// -dloss/dlogprob (the minus sign is part of the ABI). A batch may come in chunks: divide by BatchDatums or BatchGroups,
// never by the chunk's own counts. Keep nothing between calls. Package fmt doubles the module; strconv and errors do not.
package tinkerloss

import (
	"math"
	"strconv"
	"unsafe"
)

const (
	abiVersion = 0x00010000
	magic      = 0x53534F4C
)

// Batch is one chunk of a batch. Slices that it returns share the request's memory and are valid during the call.
type Batch struct{ req []byte }

// Column is one named tensor of all datums; see [Batch.Column].
type Column struct{ at uint32 }

// Failure is an error with a status of the ABI.
type Failure struct {
	Status int // 1 wrong input or configuration, 2 numerical, 3 a fault of the plugin
	Text   string
}

func (f *Failure) Error() string { return f.Text }

// User says that the input or the configuration is wrong. Other errors than a *[Failure] count as that, too.
func User(text string) error { return &Failure{Status: 1, Text: text} }

// UserDatum is [User] with "datum N: " before the text. N counts within the chunk.
func UserDatum(datum int, text string) error {
	return User("datum " + strconv.Itoa(datum) + ": " + text)
}

var plugin struct {
	description string
	loss        func(*Batch) error
}

// Register names the module's description (JSON, section 5 of the ABI) and its loss. Call it from init.
func Register(description string, loss func(*Batch) error) {
	plugin.description, plugin.loss = description, loss
}

// call runs the registered loss over a request and returns the status.
func call(req []byte) int32 {
	b := &Batch{req}
	if len(req) < 128 || b.u32(0) != magic || b.u32(4)>>16 != abiVersion>>16 || int(b.u32(8)) > len(req) || plugin.loss == nil {
		return 3
	}
	switch err := plugin.loss(b).(type) {
	case nil:
		return 0
	case *Failure:
		return b.fail(err.Status, err.Text)
	default:
		return b.fail(1, err.Error())
	}
}

func (b *Batch) fail(status int, text string) int32 {
	n := copy(slice[byte](b, b.u32(64), b.u32(68)), text)
	b.put(92, uint32(n))
	return int32(status)
}

// slice is n values of the request at an offset, checked against its end. Offsets are multiples of the values' size.
func slice[T any](b *Batch, off, n uint32) []T {
	var zero T
	size := uint64(unsafe.Sizeof(zero))
	if n == 0 {
		return nil
	}
	part := b.req[off : uint64(off)+size*uint64(n)]
	return unsafe.Slice((*T)(unsafe.Pointer(&part[0])), n)
}

func (b *Batch) u32(off uint32) uint32    { return slice[uint32](b, off, 1)[0] }
func (b *Batch) put(off uint32, v uint32) { slice[uint32](b, off, 1)[0] = v }

// EvaluateOnly says that the weights are not needed.
func (b *Batch) EvaluateOnly() bool { return b.u32(12)&1 != 0 }

// Datums, Elems and Groups count the datums, log-probabilities and groups of this chunk.
func (b *Batch) Datums() int { return int(b.u32(16)) }
func (b *Batch) Elems() int  { return int(b.u32(52)) }
func (b *Batch) Groups() int { return int(b.u32(76)) }

// BatchDatums, BatchElems and BatchGroups are the counts of the whole batch: losses divide by them.
func (b *Batch) BatchDatums() int { return int(b.u32(72)) }
func (b *Batch) BatchElems() int  { return int(slice[uint64](b, 80, 1)[0]) }
func (b *Batch) BatchGroups() int { return int(b.u32(104)) }

// Step is the optimiser step; 0 if unknown.
func (b *Batch) Step() uint64 { return slice[uint64](b, 112, 1)[0] }

// Config is the whole configuration: JSON with sorted keys, for what is not a parameter.
func (b *Batch) Config() []byte { return slice[byte](b, b.u32(40), b.u32(44)) }

// Group is the group of a datum, from 0.
func (b *Batch) Group(datum int) int {
	if off := b.u32(28); off != 0 {
		return int(slice[uint32](b, off, b.u32(16))[datum])
	}
	return 0
}

// Param is a parameter, in the order of the description.
func (b *Batch) Param(i int) float64 { return slice[float64](b, b.u32(32), b.u32(36))[i] }

// Column finds an input by name. When no datum has it, it is the zero Column, of which every part is nil.
func (b *Batch) Column(name string) Column {
	for i := range b.u32(20) {
		at := b.u32(24) + 32*i
		if string(slice[byte](b, b.u32(at), b.u32(at+4))) == name {
			return Column{at}
		}
	}
	return Column{}
}

type span struct{ start, rows, cols, flags uint32 }

func (b *Batch) span(c Column, datum int, dtype uint32) span {
	if c.at == 0 || b.u32(c.at+8) != dtype {
		return span{}
	}
	s := slice[span](b, b.u32(c.at+12), b.u32(16))[datum]
	if s.flags&1 == 0 {
		return span{}
	}
	return s
}

func (b *Batch) policy() Column { return Column{b.u32(24)} }

// Float32s is a datum's part of a float32 column, nil when it has none.
func (b *Batch) Float32s(c Column, datum int) []float32 {
	s := b.span(c, datum, 1)
	if s.flags == 0 {
		return nil
	}
	return slice[float32](b, b.u32(c.at+16)+4*s.start, s.rows*s.cols)
}

// Int64s is a datum's part of an int64 column, nil when it has none.
func (b *Batch) Int64s(c Column, datum int) []int64 {
	s := b.span(c, datum, 2)
	if s.flags == 0 {
		return nil
	}
	return slice[int64](b, b.u32(c.at+16)+8*s.start, s.rows*s.cols)
}

// Dims are the positions of a datum and the candidates per position (1, or K).
func (b *Batch) Dims(datum int) (positions, candidates int) {
	s := b.span(b.policy(), datum, 1)
	return int(s.rows), int(s.cols)
}

// LogProbs are the policy's log-probabilities of a datum.
func (b *Batch) LogProbs(datum int) []float32 { return b.Float32s(b.policy(), datum) }

// Out are the weights of a datum, -dloss/dlogprob: zeros, to be overwritten.
func (b *Batch) Out(datum int) []float32 {
	s := b.span(b.policy(), datum, 1)
	return slice[float32](b, b.u32(48)+4*s.start, s.rows*s.cols)
}

// SetLoss sets the value of the loss.
func (b *Batch) SetLoss(v float64) { slice[float64](b, 96, 1)[0] = v }

// Metric adds a metric. Its name ends in how chunks merge: ":mean" (weighted by datums), ":sum", ":min", ":max".
func (b *Batch) Metric(name string, v float64) {
	n := b.u32(88)
	if n >= b.u32(60) {
		return
	}
	at := b.u32(56) + 64*n
	slice[float64](b, at, 1)[0] = v
	b.put(at+8, uint32(copy(slice[byte](b, at+16, 48), name)))
	b.put(88, n+1)
}

// Score is the sum over a datum's tokens of w * (logprob - reference), without those of weight 0. reference may be nil.
func (b *Batch) Score(datum int, w, reference []float32) (sum float64) {
	for i, lp := range b.LogProbs(datum) {
		if w[i] == 0 {
			continue
		}
		x := float64(lp)
		if reference != nil {
			x -= float64(reference[i])
		}
		sum += float64(w[i]) * x
	}
	return sum
}

// Spread overwrites a datum's weights, given the derivative of the loss by its score.
func (b *Batch) Spread(datum int, w []float32, dscore float64) {
	out, g := b.Out(datum), float32(-dscore)
	for i := range out {
		out[i] = w[i] * g
	}
}

// Softplus is log(1 + exp(x)): -log sigmoid(x) = Softplus(-x). It does not overflow.
func Softplus(x float64) float64 { return max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }

// Sigmoid is 1/(1 + exp(-x)), the derivative of [Softplus].
func Sigmoid(x float64) float64 {
	e := math.Exp(-math.Abs(x))
	if x < 0 {
		return e / (1 + e)
	}
	return 1 / (1 + e)
}
