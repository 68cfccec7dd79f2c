package engine_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// TestPromptScores: other tokens at a prompt's places, draws there, and the last places alone have the bits of Forward, whatever
// the prompt's length, the pieces it is read in, and the size of the pool.
func TestPromptScores(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	draws := map[string]string{} // of the same request under other limits
	for _, l := range []engine.Limits{
		{},
		{PrefillTokens: 1},
		{PrefillTokens: 23, DecodeSequences: 2},
		{KVPositions: 256, PrefillTokens: 40}, // sequences lose their places
	} {
		e := open(t, func(o *engine.Options) { o.Limits = l })
		r := newRun(t, e.NewSession(), "small", 1)
		train(t, r, 2, datum(1, 9))
		p := sampler(t, r)
		type asked struct {
			what string
			q    api.SampleRequest
			f    *engine.Future[api.SampleOutput]
		}
		var all []asked
		for i, n := range []int{2, 3, 64, 65, 150} {
			for variant := range 4 {
				q := ask(tokens(i, n), 1+i%3, 3+4*i, int64(i))
				q.Params.Temperature = []float64{1, 0, 0.5, 1}[variant]
				if variant != 1 {
					q.PromptLogProbs, q.PromptLogProbsLast = variant < 3, []int{1, 0, n - 1, n / 2}[variant]
					q.TopKPromptLogProbs = []int{0, 0, 5, 3}[variant]
				}
				if variant > 0 {
					q.TargetPromptLogProbs = rows(rng, n-1, variant)
				}
				q.PromptAltTokens = []int{0, 2, 3, 0}[variant]
				f, err := p.Sample(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, asked{fmt.Sprintf("limits %+v, %d tokens, variant %d", l, n, variant), q, f})
			}
		}
		for _, a := range all {
			out := wait(t, a.f, nil)
			prompt, err := a.q.Prompt.Tokens()
			if err != nil {
				t.Fatal(err)
			}
			n := len(prompt)
			lists := trainersLists(t, r, prompt, 61)
			value := func(at int, id int32) float32 { // at the place of a token from the second on
				i := slices.IndexFunc(lists[at-1], func(x api.TokenLogProb) bool { return x.Token == id })
				return lists[at-1][i].LogProb
			}
			checkLast(t, a.what, a.q, out, value, prompt)
			if len(out.TargetPromptLogProbs) != len(a.q.TargetPromptLogProbs) {
				t.Fatalf("%s: %d rows of other tokens, wanted %d", a.what, len(out.TargetPromptLogProbs), len(a.q.TargetPromptLogProbs))
			}
			for i, row := range a.q.TargetPromptLogProbs {
				for j, id := range row {
					want := float32(0)
					if id >= 0 {
						want = value(i+1, id)
					}
					if got := out.TargetPromptLogProbs[i][j]; got != want {
						t.Fatalf("%s: row %d, token %d is %v, forward gives %v", a.what, i, id, got, want)
					}
				}
			}
			if a.q.PromptAltTokens == 0 {
				if out.PromptAltTokens != nil {
					t.Errorf("%s: draws that nobody asked for", a.what)
				}
				continue
			}
			if len(out.PromptAltTokens) != n-1 {
				t.Fatalf("%s: %d rows of draws, wanted %d", a.what, len(out.PromptAltTokens), n-1)
			}
			for i, row := range out.PromptAltTokens {
				for _, x := range row {
					if x.LogProb != value(i+1, x.Token) || a.q.Params.Temperature == 0 && x != lists[i][0] {
						t.Fatalf("%s: row %d has the draw %v, forward gives %v", a.what, i, x, value(i+1, x.Token))
					}
				}
				if len(row) != a.q.PromptAltTokens {
					t.Fatalf("%s: row %d has %d draws", a.what, i, len(row))
				}
			}
			key, text := fmt.Sprint(n, a.q.Params.Temperature), fmt.Sprint(out.PromptAltTokens)
			if was, ok := draws[key]; ok && was != text {
				t.Errorf("%s: other draws than under other limits", a.what)
			}
			draws[key] = text
		}
		e.Close()
	}
}

// rows asks for up to width tokens at each of n places; some ask for nothing, and so do the first ones.
func rows(rng *rand.Rand, n, width int) [][]int32 {
	out := make([][]int32, n)
	for i := range out {
		for range rng.IntN(width + 1) {
			id := int32(rng.IntN(62)) - 1
			if i < n/3 {
				id = -1
			}
			out[i] = append(out[i], id)
		}
	}
	out[n-1] = append(out[n-1], 7)
	return out
}

// checkLast compares the log-probabilities of the places that are wanted, and sees that there are no others.
func checkLast(t *testing.T, what string, q api.SampleRequest, out api.SampleOutput, value func(int, int32) float32, prompt []int32) {
	t.Helper()
	n := len(prompt)
	if !q.PromptLogProbs && q.TopKPromptLogProbs == 0 {
		if out.PromptLogProbs != nil || out.TopKPromptLogProbs != nil {
			t.Errorf("%s: log-probabilities that nobody asked for", what)
		}
		return
	}
	from := 1
	if q.PromptLogProbsLast > 0 {
		from = n - q.PromptLogProbsLast
	}
	for at := range n {
		got := out.PromptLogProbs[at]
		switch {
		case at < from && got == got:
			t.Fatalf("%s: place %d has %v, wanted none before %d", what, at, got, from)
		case at >= from && got != value(at, prompt[at]):
			t.Fatalf("%s: place %d has %v, forward gives %v", what, at, got, value(at, prompt[at]))
		}
		if q.TopKPromptLogProbs > 0 && (len(out.TopKPromptLogProbs[at]) == 0) != (at < from) {
			t.Fatalf("%s: place %d lists %v", what, at, out.TopKPromptLogProbs[at])
		}
	}
}

// TestPromptAltTokensDistribution: draws at a prompt's places follow the model's distribution at the request's temperature, not
// what top-k and top-p leave of it, and those of one request are not all the same.
func TestPromptAltTokensDistribution(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	train(t, r, 3, datum(1, 9))
	p := sampler(t, r)
	prompt := tokens(1, 3)
	for _, temperature := range []float64{1, 0.4} {
		counts, n := make([]float64, 61), 0.0
		for seed := range int64(40) {
			q := ask(prompt, 1, 1, seed)
			q.Params.Temperature, q.Params.TopK, q.Params.TopP, q.PromptAltTokens = temperature, 2, 0.1, 50
			for _, x := range draw(t, p, q).PromptAltTokens[1] {
				counts[x.Token]++
				n++
			}
		}
		total, chi := 0.0, 0.0
		list := trainersLists(t, r, prompt, 61)[1]
		for _, x := range list {
			total += math.Exp(float64(x.LogProb) / temperature)
		}
		for _, x := range list {
			want := n * math.Exp(float64(x.LogProb)/temperature) / total
			if want > 0 {
				chi += (counts[x.Token] - want) * (counts[x.Token] - want) / want
			}
		}
		if chi > 61+6*math.Sqrt(2*61) { // far beyond what 60 degrees of freedom give
			t.Errorf("temperature %v: chi-squared is %v over 61 tokens", temperature, chi)
		}
	}
}

// TestTopKSampledLogProbs: the lists hold the tokens that were drawn, with the values that these have, and change nothing that is drawn.
func TestTopKSampledLogProbs(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	train(t, r, 2, datum(1, 9))
	p := sampler(t, r)
	for i, temperature := range []float64{1, 0, 0.7, 2} {
		q := ask(tokens(i, 7), 2, 9, int64(i))
		q.Params.Temperature = temperature
		plain := draw(t, p, q)
		for _, k := range []int{1, 4, 61} {
			q.TopKSampledLogProbs = k
			out := draw(t, p, q)
			for j, s := range out.Sequences {
				if !slices.Equal(s.Tokens, plain.Sequences[j].Tokens) || len(s.TopKLogProbs) != len(s.Tokens) || plain.Sequences[j].TopKLogProbs != nil {
					t.Fatalf("temperature %v, k %d: %+v, without lists %+v", temperature, k, s, plain.Sequences[j])
				}
				for n, list := range s.TopKLogProbs {
					own := slices.IndexFunc(list, func(x api.TokenLogProb) bool { return x.Token == s.Tokens[n] })
					if own >= 0 && list[own].LogProb != s.LogProbs[n] || own < 0 && k == 61 {
						t.Errorf("temperature %v: token %d is %v in the list and %v alone", temperature, n, list[own].LogProb, s.LogProbs[n])
					}
					if !slices.IsSortedFunc(list, func(a, b api.TokenLogProb) int { return -compare(a.LogProb, b.LogProb) }) || len(list) != k {
						t.Errorf("temperature %v: %d entries, wanted %d from the most probable on: %v", temperature, len(list), k, list)
					}
					if sum := total(list); k == 61 && math.Abs(sum-1) > 1e-5 {
						t.Errorf("temperature %v: all tokens have probability %v", temperature, sum)
					}
				}
			}
		}
	}
}

func compare(a, b float32) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func total(list []api.TokenLogProb) float64 {
	sum := 0.0
	for _, x := range list {
		sum += math.Exp(float64(x.LogProb))
	}
	return sum
}

func TestWrongPromptScores(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.TopKPromptLogProbs = 3 })
	f, err := e.NewSession().NewSampler("small")
	p := wait(t, f, err)
	for msg, change := range map[string]func(q *api.SampleRequest){
		"prompt_logprobs_last_n is 4, wanted 1..3: all but the first token of the prompt":             func(q *api.SampleRequest) { q.PromptLogProbsLast = 4 },
		"prompt_logprobs_last_n is -1, wanted 1..3: all but the first token of the prompt":            func(q *api.SampleRequest) { q.PromptLogProbsLast = -1 },
		"topk_sample_logprobs is 4, wanted 0..3":                                                      func(q *api.SampleRequest) { q.TopKSampledLogProbs = 4 },
		"prompt_alt_tokens_k is -1, wanted 0..3":                                                      func(q *api.SampleRequest) { q.PromptAltTokens = -1 },
		"target_prompt_logprobs has 2 rows, wanted 3: one for each token of the prompt but the first": func(q *api.SampleRequest) { q.TargetPromptLogProbs = [][]int32{{1}, {2}} },
		"target_prompt_logprobs: row 1 names the token 61, the vocabulary is 0..60":                   func(q *api.SampleRequest) { q.TargetPromptLogProbs = [][]int32{{1}, {61}, {2}} },
		"target_prompt_logprobs names no token":                                                       func(q *api.SampleRequest) { q.TargetPromptLogProbs = [][]int32{{-1}, {}, {-5}} },
		"target_prompt_logprobs names 13 tokens, the limit is 3 for each of the prompt's 4":           func(q *api.SampleRequest) { q.TargetPromptLogProbs = [][]int32{make([]int32, 13), {}, {}} },
	} {
		q := ask(tokens(1, 4), 1, 2, 1)
		change(&q)
		_, err := p.Sample(ctx, q)
		fails(t, err, api.BadRequest, msg)
	}
	q := ask(tokens(1, 1), 1, 2, 1)
	q.PromptAltTokens, q.PromptLogProbs = 2, true
	if out := draw(t, p, q); len(out.PromptAltTokens) != 0 || len(out.PromptLogProbs) != 1 {
		t.Errorf("a prompt of one token gives %+v", out)
	}
}
