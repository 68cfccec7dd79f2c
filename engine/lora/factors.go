package lora

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Factor is one factor that an adapter has on a base, named and shaped as its [Tensor] is.
type Factor struct {
	Name  string
	Shape []int
	Size  int // values
	Kind  Kind
	IsA   bool
}

// Factors lists the factors that c has on sites, in the order in which an adapter keeps and saves them.
func Factors(sites []Site, c api.LoraConfig) []Factor {
	slots, _ := layout(sites, c)
	out := make([]Factor, len(slots))
	for i, s := range slots {
		out[i] = Factor{s.name, slices.Clone(s.shape), s.size, sites[s.site].Kind, s.isA}
	}
	return out
}

// Module is the path of the module that a factor of this name adapts.
func Module(factor string) string {
	module, _, _ := strings.Cut(factor, ".lora_")
	return module
}

// Init draws the values of fresh A factors: uniform in ±1/sqrt(in), PEFT's default (kaiming_uniform with a = sqrt 5). The factors of
// one adapter follow one another in the order of [Factors], so a seed stands for all of them.
type Init struct {
	pcg *rand.PCG
	rng *rand.Rand
}

// NewInit begins with the first factor.
func NewInit(seed int64) *Init {
	pcg := rand.NewPCG(uint64(seed), 0x10ca1)
	return &Init{pcg, rand.New(pcg)}
}

// Fill overwrites dst with the next values, of a factor with in input features.
func (i *Init) Fill(dst []float32, in int) {
	bound := 1 / math.Sqrt(float64(in))
	for j := range dst {
		dst[j] = float32((2*i.rng.Float64() - 1) * bound)
	}
}

// Skip passes n values over.
func (i *Init) Skip(n int) {
	for range n {
		i.pcg.Uint64() // Float64 takes one each
	}
}
