package engine_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// trainers gives the prompt's log-probabilities by a run's Forward, from the second token on.
func trainers(t testing.TB, r *engine.Run, prompt []int32) []float32 {
	t.Helper()
	n := len(prompt) - 1
	if n == 0 {
		return nil
	}
	f, err := r.Forward(batch(api.Datum{
		ModelInput: api.FromInts(prompt[:n]),
		LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(wider(prompt[1:]))},
	}))
	return logProbs(wait(t, f, err))
}

func wider(ids []int32) []int64 {
	out := make([]int64, len(ids))
	for i, id := range ids {
		out[i] = int64(id)
	}
	return out
}

// trainersLists is every token of the vocabulary with its log-probability at each position of the prompt from the
// second on, sorted: by a Forward with every token as a target.
func trainersLists(t testing.TB, r *engine.Run, prompt []int32, vocab int) [][]api.TokenLogProb {
	t.Helper()
	n := len(prompt) - 1
	targets := api.TensorData{Shape: []int{n, vocab}}
	for range n {
		for id := range vocab {
			targets.Ints = append(targets.Ints, int64(id))
		}
	}
	f, err := r.Forward(batch(api.Datum{
		ModelInput: api.FromInts(prompt[:n]),
		LossInputs: map[string]api.TensorData{
			"target_tokens": targets, "weights": {Floats: make([]float32, n*vocab), Shape: []int{n, vocab}},
		},
	}))
	lp := logProbs(wait(t, f, err))
	out := make([][]api.TokenLogProb, n)
	for p := range out {
		for id := range vocab {
			out[p] = append(out[p], api.TokenLogProb{Token: int32(id), LogProb: lp[p*vocab+id]})
		}
		slices.SortStableFunc(out[p], func(a, b api.TokenLogProb) int { return cmp.Compare(b.LogProb, a.LogProb) })
	}
	return out
}

// same compares a prompt's log-probabilities with the trainer's, bit for bit.
func same(t testing.TB, what string, got api.PromptLogProbs, want []float32) {
	t.Helper()
	if len(got) != len(want)+1 || !math.IsNaN(float64(got[0])) || !slices.Equal(got[1:], want) {
		t.Errorf("%s: prompt logprobs are %v, forward gives %v", what, got, want)
	}
}

// TestPromptLogProbs: they have the bits of Forward for the same weights, whatever the prompt's length, the pieces
// it is read in, the samples, their parameters, the requests and adapters beside, and the size of the pool.
func TestPromptLogProbs(t *testing.T) {
	for _, l := range []engine.Limits{
		{},
		{PrefillTokens: 1},
		{PrefillTokens: 23, DecodeSequences: 2},
		{KVPositions: 256, PrefillTokens: 40}, // sequences lose their places
	} {
		e := open(t, func(o *engine.Options) { o.Limits = l })
		s := e.NewSession()
		type asked struct {
			what   string
			prompt []int32
			run    *engine.Run
			k      int
			f      *engine.Future[api.SampleOutput]
			lp     *engine.Future[api.PromptLogProbs]
		}
		var all []asked
		for seed := range int64(2) {
			r := newRun(t, s, "small", seed)
			train(t, r, 2, datum(int(seed), 9))
			p := sampler(t, r)
			for i, n := range []int{1, 2, 64, 65, 180} {
				q := ask(tokens(i+int(seed), n), 1+i%3, 3+4*i, int64(i))
				q.Params.Temperature, q.Params.TopK, q.Params.TopP = []float64{1, 0, 0.3}[i%3], 1+i, 0.5
				q.PromptLogProbs, q.TopKPromptLogProbs = i%2 == 0, []int{0, 5, 61}[(i+int(seed))%3]
				a := asked{prompt: tokens(i+int(seed), n), run: r, k: q.TopKPromptLogProbs}
				a.what = fmt.Sprintf("limits %+v, seed %d, %d tokens, k %d", l, seed, n, a.k)
				if !q.PromptLogProbs && a.k == 0 {
					q.PromptLogProbs = true
				}
				var err error
				if a.f, err = p.Sample(ctx, q); err != nil {
					t.Fatal(err)
				}
				if a.lp, err = p.ComputeLogProbs(ctx, q.Prompt); err != nil {
					t.Fatal(err)
				}
				all = append(all, a)
			}
		}
		for _, a := range all {
			want, out := trainers(t, a.run, a.prompt), wait(t, a.f, nil)
			same(t, a.what, out.PromptLogProbs, want)
			same(t, a.what+", computed alone", wait(t, a.lp, nil), want)
			if a.k == 0 {
				if out.TopKPromptLogProbs != nil {
					t.Errorf("%s: lists that nobody asked for", a.what)
				}
				continue
			}
			if len(out.TopKPromptLogProbs) != len(a.prompt) || out.TopKPromptLogProbs[0] != nil {
				t.Fatalf("%s: lists are %v", a.what, out.TopKPromptLogProbs)
			}
			if len(a.prompt) == 1 {
				continue
			}
			for i, want := range trainersLists(t, a.run, a.prompt, 61) {
				list := out.TopKPromptLogProbs[i+1]
				if !slices.Equal(list, want[:a.k]) {
					t.Fatalf("%s: position %d lists %v, wanted %v", a.what, i+1, list, want[:a.k])
				}
				own := slices.IndexFunc(list, func(x api.TokenLogProb) bool { return x.Token == a.prompt[i+1] })
				if own >= 0 && list[own].LogProb != out.PromptLogProbs[i+1] {
					t.Errorf("%s: position %d is %v in the list and %v in the flat one", a.what, i+1, list[own], out.PromptLogProbs[i+1])
				}
			}
		}
		e.Close()
	}
}

// TestPromptLogProbsChangeNothing: what is sampled is the same with and without; what was not asked for is null.
func TestPromptLogProbsChangeNothing(t *testing.T) {
	e := open(t, nil)
	g, err := e.NewSession().NewSampler("small")
	s := wait(t, g, err)
	q := ask(tokens(1, 90), 3, 12, 4)
	plain := draw(t, s, q)
	if plain.PromptLogProbs != nil || plain.TopKPromptLogProbs != nil {
		t.Errorf("prompt logprobs without a request: %v", plain)
	}
	b, err := json.Marshal(plain)
	if err != nil || !strings.HasSuffix(string(b), `"prompt_logprobs":null,"topk_prompt_logprobs":null}`) {
		t.Errorf("in JSON %s, %v", b, err)
	}
	q.TopKPromptLogProbs = 2
	with := draw(t, s, q)
	if fmt.Sprint(with.Sequences) != fmt.Sprint(plain.Sequences) {
		t.Errorf("sampled %v, without prompt logprobs %v", with.Sequences, plain.Sequences)
	}
	// A helper that draws nothing uses no seed up.
	q = ask(tokens(1, 9), 1, 12, 4)
	q.Params.Seed = nil
	free := func(between bool) string {
		e := open(t, nil)
		g, err := e.NewSession().NewSampler("small")
		s := wait(t, g, err)
		if between {
			f, err := s.ComputeLogProbs(ctx, q.Prompt)
			wait(t, f, err)
		}
		return fmt.Sprint(draw(t, s, q))
	}
	if free(true) != free(false) {
		t.Error("computing log-probabilities changed the next draw")
	}
}

// TestStreamPromptLogProbs: a stream's result has them, beside the tokens it streamed.
func TestStreamPromptLogProbs(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.PrefillTokens = 16 })
	g, err := e.NewSession().NewSampler("small")
	s := wait(t, g, err)
	q := ask(tokens(1, 50), 2, 6, 1)
	q.PromptLogProbs, q.TopKPromptLogProbs = true, 3
	st, err := s.Stream(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		_, err = st.Next(ctx)
	}
	if err != io.EOF || n != 13 {
		t.Errorf("%d tokens, %v", n-1, err)
	}
	if got, want := fmt.Sprint(wait(t, st.Future(), nil)), fmt.Sprint(draw(t, s, q)); got != want {
		t.Errorf("the stream ended with %s, wanted %s", got, want)
	}
}

// TestCancelPromptLogProbs: a cancelled prompt gives its place and its count up.
func TestCancelPromptLogProbs(t *testing.T) {
	e := open(t, func(o *engine.Options) {
		o.Limits.DecodeSequences, o.Limits.SampleRequests, o.Limits.PrefillTokens, o.Limits.KVPositions = 1, 2, 1, 256
	})
	g, err := e.NewSession().NewSampler("small")
	s := wait(t, g, err)
	for range 5 {
		c, cancel := context.WithCancel(ctx)
		long := api.FromInts(tokens(1, 200)) // as long as the context: nothing can be drawn after it
		a, err := s.ComputeLogProbs(c, long)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.ComputeLogProbs(ctx, long)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.ComputeLogProbs(ctx, long)
		fails(t, err, api.Busy, "2 sampling requests are under way, the limit is 2")
		cancel()
		b.Cancel()
		for _, f := range []*engine.Future[api.PromptLogProbs]{a, b} {
			if _, err := result(f, nil); err != nil { // it may have ended before
				fails(t, err, api.Cancelled, "sample: cancelled")
			}
		}
	}
	f, err := s.ComputeLogProbs(ctx, api.FromInts(tokens(1, 200)))
	if lp := wait(t, f, err); len(lp) != 200 {
		t.Errorf("%d log-probabilities for 200 tokens", len(lp))
	}
	draw(t, s, ask(tokens(1, 4), 1, 2, 1))
}

func TestWrongPromptLogProbs(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.TopKPromptLogProbs, o.Limits.KVPositions = 40, 128 })
	sess := e.NewSession()
	g, err := sess.NewSampler("small")
	small := wait(t, g, err)
	g, err = sess.NewSampler("other")
	untied := wait(t, g, err)
	for _, c := range []struct {
		s   *engine.Sampler
		k   int
		msg string
	}{
		{small, -1, "topk_prompt_logprobs is -1, wanted 0..40"},
		{small, 41, "topk_prompt_logprobs is 41, wanted 0..40"},
		{untied, 38, "topk_prompt_logprobs is 38, wanted 0..37"}, // the vocabulary
	} {
		q := ask(tokens(1, 4), 1, 2, 1)
		q.TopKPromptLogProbs = c.k
		_, err := c.s.Sample(ctx, q)
		fails(t, err, api.BadRequest, c.msg)
		_, err = c.s.Stream(ctx, q)
		fails(t, err, api.BadRequest, c.msg)
	}
	q := ask(tokens(1, 4), 1, 2, 1)
	q.TopKPromptLogProbs = 37
	for _, list := range draw(t, untied, q).TopKPromptLogProbs[1:] {
		sum := 0.0
		for _, x := range list {
			sum += math.Exp(float64(x.LogProb))
		}
		if len(list) != 37 || math.Abs(sum-1) > 1e-5 {
			t.Errorf("all %d tokens have probability %v", len(list), sum)
		}
	}
	for _, c := range []struct {
		prompt api.ModelInput
		code   api.Code
		msg    string
	}{
		{api.ModelInput{}, api.BadRequest, "the prompt is empty"},
		{api.FromInts([]int32{1, 99}), api.BadRequest, "prompt: token 1 has id 99, the vocabulary is 0..60"},
		{api.FromInts(make([]int32, 201)), api.BadRequest, "the prompt has 201 tokens, the model's context is 200"},
		{api.FromInts(make([]int32, 129)), api.OutOfMemory, "prompt_logprobs: a prompt of 129 tokens does not fit the key/value pool of 128 positions"},
	} {
		_, err := result(small.ComputeLogProbs(ctx, c.prompt))
		fails(t, err, c.code, c.msg)
	}
	f, err := small.ComputeLogProbs(ctx, api.FromInts(tokens(1, 128))) // all of the pool
	wait(t, f, err)
	small.Close()
	_, err = small.ComputeLogProbs(ctx, api.FromInts(tokens(1, 4)))
	fails(t, err, api.Closed, "the sampler is closed")
}

// TestDivergedPrompt: weights that give no finite log-probability fail the request that has them, and no other.
func TestDivergedPrompt(t *testing.T) {
	e := open(t, nil)
	sess := e.NewSession()
	r := newRun(t, sess, "small", 1)
	f, err := r.Weights()
	w := wait(t, f, err)
	for i := range w.Tensors {
		for j := range w.Tensors[i].Values {
			w.Tensors[i].Values[j] = 1e30
		}
	}
	g, err := sess.NewAdapterSampler("small", w)
	bad := wait(t, g, err)
	good := sampler(t, r)
	hold, err := good.ComputeLogProbs(ctx, api.FromInts(tokens(1, 60)))
	_, failed := result(bad.ComputeLogProbs(ctx, api.FromInts(tokens(1, 60))))
	const want = "prompt_logprobs: at prompt position 1 the log-probability of token "
	if api.CodeOf(failed) != api.BadRequest || !strings.HasPrefix(failed.Error(), want) || !strings.HasSuffix(failed.Error(), ": the weights have diverged") {
		t.Errorf("got %v, wanted %s", failed, want)
	}
	wait(t, hold, err)
}

// TestTemperatureScalesLogProbs: sampled log-probabilities differ as the formula says, log p_T(i) - log p_T(j) =
// (log p_1(i) - log p_1(j)) / T, and are those of a distribution; filters do not change them.
func TestTemperatureScalesLogProbs(t *testing.T) {
	e := open(t, nil)
	g, err := e.NewSession().NewSampler("small")
	s := wait(t, g, err)
	prompt := tokens(1, 6)
	for _, temperature := range []float64{0.5, 0.9, 1.7, 3} {
		drawn := map[int32]api.SampledSequence{}
		for _, topK := range []int{-1, 2} {
			q := ask(prompt, 400, 1, 5)
			q.Params.Temperature, q.Params.TopK = temperature, topK
			for _, x := range draw(t, s, q).Sequences {
				if was, ok := drawn[x.Tokens[0]]; ok && was.LogProbs[0] != x.LogProbs[0] {
					t.Errorf("T=%v: token %d has %v and %v", temperature, x.Tokens[0], was.LogProbs[0], x.LogProbs[0])
				}
				drawn[x.Tokens[0]] = x
			}
		}
		if len(drawn) < 3 {
			t.Fatalf("T=%v: only %d tokens were drawn", temperature, len(drawn))
		}
		var first *api.SampledSequence
		sum := 0.0
		for _, x := range drawn {
			sum += math.Exp(float64(x.LogProbs[0]))
			if first == nil {
				first = &x
				continue
			}
			got := float64(x.LogProbs[0]) - float64(first.LogProbs[0])
			want := (float64(x.RawLogProbs[0]) - float64(first.RawLogProbs[0])) / temperature
			if math.Abs(got-want) > 1e-5 {
				t.Errorf("T=%v: tokens %d and %d differ by %v, wanted %v", temperature, x.Tokens[0], first.Tokens[0], got, want)
			}
		}
		if sum > 1+1e-5 {
			t.Errorf("T=%v: the tokens drawn have probability %v", temperature, sum)
		}
	}
}
