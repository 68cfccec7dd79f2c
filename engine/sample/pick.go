package sample

import (
	"math"
	"slices"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/model"
)

// Check says whether p can be used.
func Check(p api.SamplingParams) error {
	switch {
	case p.MaxTokens < 0:
		return api.Errorf(api.BadRequest, "max_tokens is %d, wanted 0 (up to the context) or more", p.MaxTokens)
	case !(p.Temperature >= 0) || math.IsInf(p.Temperature, 0):
		return api.Errorf(api.BadRequest, "temperature is %v, wanted a finite number >= 0", p.Temperature)
	case p.TopK < -1:
		return api.Errorf(api.BadRequest, "top_k is %d, wanted -1 (off) or more", p.TopK)
	case !(p.TopP >= 0 && p.TopP <= 1):
		return api.Errorf(api.BadRequest, "top_p is %v, wanted 0..1", p.TopP)
	}
	for i, s := range p.Stop {
		if s == "" {
			return api.Errorf(api.BadRequest, "stop string %d is empty", i)
		}
	}
	return nil
}

// Choice is one token drawn from a row of logits.
type Choice struct {
	Token int32
	// LogProb is the token's log-probability in the distribution scaled by the temperature, before top-k and
	// top-p; at temperature 0 and 1 it is Raw.
	LogProb float32
	// Raw is z[Token] - lse in float32: the trainer's log-probability, bit for bit.
	Raw float32
}

// Picker chooses tokens. It keeps scratch memory between choices, so one goroutine uses it at a time.
type Picker struct {
	w     []float64 // exp((z - max) / temperature) by id
	total float64   // of w
	ids   []int32   // what the filters left, most probable first
}

// Pick draws token number draw of sample number sample from logits z, whose log-sum-exp is lse. The
// filters work in this order: temperature, top-k, top-p of what top-k left (the fewest most probable
// tokens whose probabilities sum to at least top_p; always one). Ties go to the lower id. A logit that is NaN or
// +Inf, or a row without a finite one, is an error.
func (p *Picker) Pick(z []float32, lse float32, params api.SamplingParams, seed int64, sample, draw int) (Choice, error) {
	best, err := argmax(z)
	if err != nil {
		return Choice{}, err
	}
	if params.Temperature == 0 {
		raw := z[best] - lse
		return Choice{Token: int32(best), LogProb: raw, Raw: raw}, nil
	}
	total := p.weigh(z, z[best], params.Temperature)
	u := uniform(seed, sample, draw)
	id := 0
	if topK := params.TopK > 0 && params.TopK < len(z); topK || params.TopP < 1 {
		k := len(z)
		if topK {
			k = params.TopK
		}
		id = p.filtered(k, params.TopP, total, u)
	} else {
		id = p.all(total, u)
	}
	return Choice{Token: int32(id), Raw: z[id] - lse, LogProb: p.scaled(z, lse, id, best, params.Temperature)}, nil
}

// scaled is a token's log-probability at a temperature above 0, once p has weighed z. best is the largest logit's id.
func (p *Picker) scaled(z []float32, lse float32, id, best int, temperature float64) float32 {
	if temperature == 1 {
		return z[id] - lse
	}
	return float32((float64(z[id])-float64(z[best]))/temperature - math.Log(p.total))
}

// Top lists the k most probable tokens of the row that Pick has chosen from, with their log-probabilities as it gives them.
func (p *Picker) Top(z []float32, lse float32, temperature float64, k int) []api.TokenLogProb {
	list := model.Top(z, lse, min(k, len(z)))
	if temperature != 0 && temperature != 1 {
		best := int(list[0].Token)
		for i, t := range list {
			list[i].LogProb = p.scaled(z, lse, int(t.Token), best, temperature)
		}
	}
	return list
}

// alternatives draws k tokens of a prompt's place, each for itself, with the model's own log-probabilities. Their random numbers are those of
// samples that cannot be asked for, so that no token of a sample is tied to them.
func (p *Picker) alternatives(z []float32, lse float32, temperature float64, seed int64, place, k int) ([]api.TokenLogProb, error) {
	best, err := argmax(z)
	if err != nil {
		return nil, err
	}
	if temperature > 0 {
		p.weigh(z, z[best], temperature)
	}
	row := make([]api.TokenLogProb, k)
	for j := range row {
		id := best
		if temperature > 0 {
			id = p.all(p.total, uniform(seed, -1-j, place))
		}
		row[j] = api.TokenLogProb{Token: int32(id), LogProb: z[id] - lse}
	}
	return row, nil
}

// argmax is the lowest id among the largest logits.
func argmax(z []float32) (int, error) {
	best := -1
	for i, v := range z {
		switch {
		case v != v || v > math.MaxFloat32:
			return 0, api.Errorf(api.BadRequest, "sample: the logit of token %d is %v: the weights have diverged", i, v)
		case v < -math.MaxFloat32: // no probability
		case best < 0 || v > z[best]:
			best = i
		}
	}
	if best < 0 {
		return 0, api.Errorf(api.BadRequest, "sample: none of %d logits is finite: the weights have diverged", len(z))
	}
	return best, nil
}

// weigh fills p.w and p.total, its sum, added in id order.
func (p *Picker) weigh(z []float32, top float32, temperature float64) float64 {
	p.w = slices.Grow(p.w[:0], len(z))[:len(z)]
	total := 0.0
	for i, v := range z {
		w := math.Exp((float64(v) - float64(top)) / temperature)
		p.w[i] = w
		total += w
	}
	p.total = total
	return total
}

// all inverts the cumulative distribution over all ids in id order.
func (p *Picker) all(total, u float64) int {
	sum, last := 0.0, 0
	for i, w := range p.w {
		if w == 0 {
			continue
		}
		last = i
		if sum += w; sum > u*total {
			break
		}
	}
	return last
}

// filtered draws from what top-k (k is the vocabulary when it is off) and top-p leave.
func (p *Picker) filtered(k int, topP, total, u float64) int {
	if k < len(p.w) {
		p.largest(func(ids []int32) bool { return len(ids) >= k })
		p.ids = p.ids[:min(k, len(p.ids))]
		total = p.sum(p.ids)
	} else {
		p.largest(func(ids []int32) bool { return p.sum(ids) >= topP*total })
	}
	sum, n := 0.0, 0
	for n < len(p.ids) {
		sum += p.w[p.ids[n]]
		n++
		if topP < 1 && sum >= topP*total {
			break
		}
	}
	at := 0.0
	for _, id := range p.ids[:n] {
		if at += p.w[id]; at > u*sum {
			return int(id)
		}
	}
	return int(p.ids[n-1])
}

// largest puts the most probable tokens into p.ids, in order, until they are enough. It sorts no more of
// the vocabulary than it needs: all tokens above a threshold, which falls until they suffice.
func (p *Picker) largest(enough func(ids []int32) bool) {
	for threshold := math.Ldexp(1, -8); ; threshold = threshold * threshold {
		p.ids = p.ids[:0]
		for i, w := range p.w {
			if w > 0 && w >= threshold {
				p.ids = append(p.ids, int32(i))
			}
		}
		if threshold == 0 || enough(p.ids) {
			break
		}
	}
	slices.SortFunc(p.ids, func(a, b int32) int {
		switch {
		case p.w[a] > p.w[b]:
			return -1
		case p.w[a] < p.w[b]:
			return 1
		}
		return int(a - b)
	})
}

func (p *Picker) sum(ids []int32) float64 {
	s := 0.0
	for _, id := range ids {
		s += p.w[id]
	}
	return s
}
