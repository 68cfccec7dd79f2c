package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
	"tinkerlocal/engine/lora"
	"tinkerlocal/engine/sample"
)

// ask is a request for n samples of at most length tokens.
func ask(prompt []int32, n, length int, seed int64) api.SampleRequest {
	p := api.DefaultSampling()
	p.MaxTokens, p.Seed = length, &seed
	return api.SampleRequest{Prompt: api.FromInts(prompt), Params: p, NumSamples: n}
}

func draw(t testing.TB, s *engine.Sampler, r api.SampleRequest) api.SampleOutput {
	t.Helper()
	f, err := s.Sample(ctx, r)
	return wait(t, f, err)
}

// sameBits compares a sample's raw logprobs with those of a training forward over prompt and sample.
func sameBits(t testing.TB, r *engine.Run, prompt []int32, s api.SampledSequence) {
	t.Helper()
	seq := slices.Concat(prompt, s.Tokens)
	targets := make([]int64, len(seq)-1)
	for i := range targets {
		targets[i] = int64(seq[i+1])
	}
	f, err := r.Forward(batch(api.Datum{
		ModelInput: api.FromInts(seq[:len(seq)-1]),
		LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets)},
	}))
	lp := logProbs(wait(t, f, err))[len(prompt)-1:]
	if !slices.Equal(lp, s.RawLogProbs) {
		t.Errorf("sampled logprobs %v, forward gives %v", s.RawLogProbs, lp)
	}
}

// TestSampleEqualsForward: for equal weights the logprobs of sampling have the bits of forward, alone and beside others.
func TestSampleEqualsForward(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.PrefillTokens = 7 })
	r := newRun(t, e.NewSession(), "small", 1)
	train(t, r, 3, datum(1, 12), datum(2, 30))
	s := sampler(t, r)
	if s.Version() != 3 {
		t.Errorf("the sampler has version %d", s.Version())
	}
	for i, length := range []int{1, 5, 40, 70} {
		prompt := tokens(i, 1+i*29)
		out := draw(t, s, ask(prompt, 2, length, 7))
		for _, seq := range out.Sequences {
			if len(seq.Tokens) != length || seq.StopReason != api.StopReasonLength || !slices.Equal(seq.LogProbs, seq.RawLogProbs) {
				t.Fatalf("sequence is %+v", seq)
			}
			sameBits(t, r, prompt, seq)
		}
		if a, b := out.Sequences[0].Tokens, out.Sequences[1].Tokens; length > 4 && slices.Equal(a, b) {
			t.Errorf("two samples are equal: %v", a)
		}
	}
}

// TestBatching: what a request gives does not depend on who else is there, on when it came, or on limits.
func TestBatching(t *testing.T) {
	type key struct{ who, i int }
	results := func(t *testing.T, l engine.Limits, shuffle uint64) map[key]api.SampleOutput {
		e := open(t, func(o *engine.Options) { o.Limits = l })
		defer e.Close()
		sess := e.NewSession()
		bare, err := sess.NewSampler("small")
		other, err2 := sess.NewSampler("other")
		samplers := []*engine.Sampler{wait(t, bare, err), wait(t, other, err2)}
		for seed := range int64(2) {
			r := newRun(t, sess, "small", seed)
			train(t, r, 2, datum(int(seed), 9))
			samplers = append(samplers, sampler(t, r))
		}
		var keys []key
		for who := range samplers {
			for i := range 5 {
				keys = append(keys, key{who, i})
			}
		}
		rng := rand.New(rand.NewPCG(shuffle, 5))
		rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		out := map[key]api.SampleOutput{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, k := range keys {
			if shuffle == 0 { // one after another
				out[k] = draw(t, samplers[k.who], ask(tokens(k.i, 1+k.i*33), 1+k.i%3, 3+13*k.i, int64(k.i)))
				continue
			}
			delay := time.Duration(rng.IntN(3000)) * time.Microsecond
			all.Go(func() {
				time.Sleep(delay)
				f, err := samplers[k.who].Sample(ctx, ask(tokens(k.i, 1+k.i*33), 1+k.i%3, 3+13*k.i, int64(k.i)))
				v, err := result(f, err)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				out[k] = v
			})
		}
		all.Wait()
		return out
	}
	want := results(t, engine.Limits{}, 0)
	for i, l := range []engine.Limits{
		{},
		{PrefillTokens: 1},
		{PrefillTokens: 50, DecodeSequences: 3},
		{KVPositions: 256, PrefillTokens: 40}, // four pages: sequences lose their places
		{KVPositions: 384, DecodeSequences: 40},
	} {
		got := results(t, l, uint64(i+1))
		for k, w := range want {
			if fmt.Sprint(got[k]) != fmt.Sprint(w) {
				t.Errorf("limits %+v: request %+v gave %v, wanted %v", l, k, got[k], w)
			}
		}
	}
}

// TestPool: sequences that need a new page in the same step, and more pages than there are, take turns.
func TestPool(t *testing.T) {
	var want []string
	for _, positions := range []int{2000, 6 * 64, 3 * 64} {
		e := open(t, func(o *engine.Options) { o.Limits.KVPositions = positions })
		g, err := e.NewSession().NewSampler("small")
		s := wait(t, g, err)
		var futures []*engine.Future[api.SampleOutput]
		for i := range 4 {
			f, err := s.Sample(ctx, ask(tokens(i, 2), 1+i%2, 150, int64(i)))
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		var got []string
		for _, f := range futures {
			got = append(got, fmt.Sprint(wait(t, f, nil)))
		}
		if want == nil {
			want = got
		}
		if !slices.Equal(got, want) {
			t.Errorf("with %d positions: %v, wanted %v", positions, got, want)
		}
	}
}

// TestSnapshot: later training and the end of the run do not change a sampler.
func TestSnapshot(t *testing.T) {
	e := open(t, nil)
	r := newRun(t, e.NewSession(), "small", 1)
	train(t, r, 2, datum(1, 12))
	s := sampler(t, r)
	req := ask(tokens(1, 6), 2, 10, 3)
	want := draw(t, s, req)
	running, err := s.Sample(ctx, ask(tokens(1, 6), 4, 60, 3))
	if err != nil {
		t.Fatal(err)
	}
	train(t, r, 3, datum(4, 12))
	now := draw(t, sampler(t, r), req)
	if fmt.Sprint(now) == fmt.Sprint(want) {
		t.Error("training changed nothing")
	}
	if got := wait(t, running, nil); !slices.Equal(got.Sequences[0].Tokens[:10], want.Sequences[0].Tokens) {
		t.Error("training changed a sample under way")
	}
	r.Close()
	if got := draw(t, s, req); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("the snapshot changed")
	}
	_, err = r.SaveForSampler()
	fails(t, err, api.Closed, "the run is closed")
}

// TestAdapterSampler: an adapter from the host samples like the run it was read from; a fresh one like the base.
func TestAdapterSampler(t *testing.T) {
	e := open(t, nil)
	sess := e.NewSession()
	r := newRun(t, sess, "small", 1)
	req := ask(tokens(1, 6), 1, 10, 3)
	fresh := draw(t, sampler(t, r), req)
	b, err := sess.NewSampler("small")
	if bare := draw(t, wait(t, b, err), req); fmt.Sprint(bare) != fmt.Sprint(fresh) {
		t.Error("a fresh adapter differs from the base")
	}
	train(t, r, 2, datum(1, 12))
	w, err := r.Weights()
	host := wait(t, w, err)
	f, err := sess.NewAdapterSampler("small", host)
	if got, want := draw(t, wait(t, f, err), req), draw(t, sampler(t, r), req); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("the adapter from the host samples differently")
	}
	half := host
	half.Tensors = slices.DeleteFunc(slices.Clone(host.Tensors), func(x lora.Tensor) bool { return strings.Contains(x.Name, "layers.0.") })
	f, err = sess.NewAdapterSampler("small", half)
	if got := draw(t, wait(t, f, err), req); fmt.Sprint(got) == fmt.Sprint(draw(t, sampler(t, r), req)) {
		t.Error("an adapter of some modules samples as the whole does")
	}
	host.Tensors = host.Tensors[1:]
	_, err = result(sess.NewAdapterSampler("small", host))
	fails(t, err, api.BadRequest, "adapter has no tensor model.layers.0.self_attn.q_proj.lora_A.weight")
}

// letters spells token i as a letter; some tokens are longer.
type letters struct{}

func (letters) Push(id int32) string {
	return string(rune('a'+id%26)) + strings.Repeat("!", int(id/26))
}
func (letters) Flush() string { return "" }

func spell(ids []int32) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(letters{}.Push(id))
	}
	return b.String()
}

// TestStops: stop ids, stop strings and the model's end-of-sequence token end a sample; what ended it is in the tokens.
func TestStops(t *testing.T) {
	e := open(t, func(o *engine.Options) {
		o.Detokenizer = func(src *hf.Checkpoint) (func() sample.Detokenizer, error) {
			return func() sample.Detokenizer { return letters{} }, nil
		}
	})
	sess := e.NewSession()
	f, err := sess.NewSampler("small")
	s := wait(t, f, err)
	req := ask(tokens(1, 6), 1, 40, 3)
	full := draw(t, s, req).Sequences[0]

	req.Params.StopTokens = []int32{full.Tokens[9]}
	first := slices.Index(full.Tokens, full.Tokens[9])
	got := draw(t, s, req).Sequences[0]
	if !slices.Equal(got.Tokens, full.Tokens[:first+1]) || got.StopReason != api.StopReasonStop || len(got.LogProbs) != len(got.Tokens) {
		t.Errorf("stop token %d: %+v of %v", full.Tokens[9], got, full.Tokens)
	}
	req.Params.StopTokens = nil
	req.Params.Stop = []string{"never seen", spell(full.Tokens[4:8])}
	n := 1
	for !strings.Contains(spell(full.Tokens[:n]), req.Params.Stop[1]) {
		n++
	}
	got = draw(t, s, req).Sequences[0]
	if !slices.Equal(got.Tokens, full.Tokens[:n]) || got.StopReason != api.StopReasonStop {
		t.Errorf("stop string %q: %+v of %v", req.Params.Stop[1], got, full.Tokens)
	}
	f, err = sess.NewSampler("other")
	ended := 0
	for _, seq := range draw(t, wait(t, f, err), ask(tokens(1, 6), 20, 60, 1)).Sequences {
		at := slices.Index(seq.Tokens, 5)
		if at >= 0 && (at != len(seq.Tokens)-1 || seq.StopReason != api.StopReasonStop) {
			t.Errorf("went on after the end of sequence: %+v", seq)
		}
		if at >= 0 {
			ended++
		}
	}
	if ended == 0 {
		t.Error("no sample ended by itself")
	}
	// No stop at all: nothing but the limit ends a sequence, whose tokens are the same up to where it would have ended.
	endless := ask(tokens(1, 6), 20, 60, 1)
	endless.Params.StopTokens = []int32{}
	ending := draw(t, wait(t, f, nil), ask(tokens(1, 6), 20, 60, 1)).Sequences
	for i, seq := range draw(t, wait(t, f, nil), endless).Sequences {
		until := ending[i].Tokens
		if len(seq.Tokens) != 60 || seq.StopReason != api.StopReasonLength || !slices.Equal(seq.Tokens[:len(until)], until) {
			t.Errorf("without stops: %+v; with them %v", seq, until)
		}
	}
	endless.Params.Stop = []string{spell([]int32{5})}
	for _, seq := range draw(t, wait(t, f, nil), endless).Sequences {
		if at := slices.Index(seq.Tokens, 5); at >= 0 && (at != len(seq.Tokens)-1 || seq.StopReason != api.StopReasonStop) {
			t.Errorf("a stop string did not end %+v", seq)
		}
	}
	// No limit: up to the context.
	free := ask(tokens(1, 150), 1, 0, 3)
	if got := draw(t, s, free).Sequences[0]; len(got.Tokens) != 50 || got.StopReason != api.StopReasonLength {
		t.Errorf("without a limit %d tokens, %s", len(got.Tokens), got.StopReason)
	}
}

func TestWrongSampleRequest(t *testing.T) {
	e := open(t, func(o *engine.Options) {
		o.Limits.SamplesPerRequest, o.Limits.StopStrings, o.Limits.StopBytes = 8, 2, 4
	})
	sess := e.NewSession()
	f, err := sess.NewSampler("small")
	s := wait(t, f, err)
	for _, c := range []struct {
		change func(r *api.SampleRequest)
		code   api.Code
		msg    string
	}{
		{func(r *api.SampleRequest) { r.Prompt = api.ModelInput{} }, api.BadRequest, "the prompt is empty"},
		{func(r *api.SampleRequest) { r.Prompt = api.FromInts(make([]int32, 200)) }, api.BadRequest, "the prompt has 200 tokens, the model's context is 200 and needs room for one more"},
		{func(r *api.SampleRequest) { r.Prompt = api.FromInts([]int32{1, 99}) }, api.BadRequest, "prompt: token 1 has id 99, the vocabulary is 0..60"},
		{func(r *api.SampleRequest) { r.NumSamples = 9 }, api.BadRequest, "num_samples is 9, wanted 1..8"},
		{func(r *api.SampleRequest) { r.NumSamples = -1 }, api.BadRequest, "num_samples is -1, wanted 1..8"},
		{func(r *api.SampleRequest) { r.Params.TopP = 2 }, api.BadRequest, "top_p is 2, wanted 0..1"},
		{func(r *api.SampleRequest) { r.Params.StopTokens = []int32{61} }, api.BadRequest, "stop: token 0 has id 61, the vocabulary is 0..60"},
		{func(r *api.SampleRequest) { r.Params.StopTokens = []int32{1, 2, 3} }, api.BadRequest, "3 stops, the limit is 2"},
		{func(r *api.SampleRequest) { r.Params.Stop = []string{"x"} }, api.Unsupported, "stop strings need a tokenizer; this engine was opened without one, use stop token ids"},
	} {
		r := ask(tokens(1, 4), 1, 4, 1)
		c.change(&r)
		f, err := s.Sample(ctx, r)
		if f != nil {
			t.Errorf("%s: was accepted", c.msg)
		}
		fails(t, err, c.code, c.msg)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Sample(ended, ask(tokens(1, 4), 1, 4, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a ctx that has ended: %v", err)
	}
	s.Close()
	s.Close()
	_, err = s.Sample(ctx, ask(tokens(1, 4), 1, 4, 1))
	fails(t, err, api.Closed, "the sampler is closed")
}

// TestCancelSample: a cancelled request ends and gives its place up; others go on.
func TestCancelSample(t *testing.T) {
	e := open(t, func(o *engine.Options) { o.Limits.DecodeSequences, o.Limits.SampleRequests = 2, 3 })
	sess := e.NewSession()
	g, err := sess.NewSampler("small")
	s := wait(t, g, err)
	long := func(c context.Context) *engine.Future[api.SampleOutput] {
		t.Helper()
		f, err := s.Sample(c, ask(tokens(1, 4), 2, 190, 1))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	c, cancel := context.WithCancel(ctx)
	a, b, last := long(c), long(ctx), long(ctx)
	_, err = s.Sample(ctx, ask(tokens(1, 4), 1, 1, 1))
	fails(t, err, api.Busy, "3 sampling requests are under way, the limit is 3")
	cancel()
	b.Cancel()
	for _, f := range []*engine.Future[api.SampleOutput]{a, b} {
		if _, err := result(f, nil); err != nil { // it may have ended before
			fails(t, err, api.Cancelled, "sample: cancelled")
		}
	}
	if out := wait(t, last, nil); len(out.Sequences[1].Tokens) != 190 {
		t.Error("another request did not end")
	}
	draw(t, s, ask(tokens(1, 4), 1, 1, 1))
}

// TestStream hands out what the result holds, in order.
func TestStream(t *testing.T) {
	e := open(t, nil)
	g, err := e.NewSession().NewSampler("small")
	s := wait(t, g, err)
	st, err := s.Stream(ctx, ask(tokens(1, 4), 3, 20, 1))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]api.SampledSequence, 3)
	for {
		tok, err := st.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		q := &got[tok.Sample]
		q.Tokens, q.LogProbs, q.RawLogProbs = append(q.Tokens, tok.ID), append(q.LogProbs, tok.LogProb), append(q.RawLogProbs, tok.Raw)
	}
	want := wait(t, st.Future(), nil)
	for i := range got {
		got[i].StopReason = want.Sequences[i].StopReason
	}
	if fmt.Sprint(got) != fmt.Sprint(want.Sequences) {
		t.Errorf("streamed %v, wanted %v", got, want.Sequences)
	}
	st, err = s.Stream(ctx, ask(tokens(1, 4), 3, 190, 1))
	if err != nil {
		t.Fatal(err)
	}
	st.Future().Cancel()
	for err == nil {
		_, err = st.Next(ctx)
	}
	fails(t, err, api.Cancelled, "sample: cancelled")
}

// TestGreedy: temperature 0 is the same for every seed, and the most probable token.
func TestGreedy(t *testing.T) {
	e := open(t, nil)
	g, err := e.NewSession().NewSampler("small")
	s := wait(t, g, err)
	var want []int32
	for seed := range int64(3) {
		r := ask(tokens(1, 4), 2, 12, seed)
		r.Params.Temperature = 0
		for _, q := range draw(t, s, r).Sequences {
			if want == nil {
				want = q.Tokens
			}
			if !slices.Equal(q.Tokens, want) || !slices.Equal(q.LogProbs, q.RawLogProbs) {
				t.Errorf("greedy gave %v and %v", q.Tokens, want)
			}
		}
	}
	r := ask(tokens(1, 4), 1, 12, 1)
	r.Params.Temperature = 0.5
	if q := draw(t, s, r).Sequences[0]; slices.Equal(q.LogProbs, q.RawLogProbs) {
		t.Error("logprobs are not scaled by the temperature")
	}
}
