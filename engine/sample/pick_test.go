package sample

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
)

// TestPhilox: the known answers of the Random123 library's kat_vectors for philox4x32-10.
func TestPhilox(t *testing.T) {
	const f = 0xffffffff
	for _, c := range []struct {
		ctr  [4]uint32
		key  [2]uint32
		want [4]uint32
	}{
		{[4]uint32{}, [2]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{f, f, f, f}, [2]uint32{f, f}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0},
			[4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := philox(c.ctr, c.key); got != c.want {
			t.Errorf("philox(%x, %x) = %x, wanted %x", c.ctr, c.key, got, c.want)
		}
	}
}

func lse(z []float32) float32 {
	sum := 0.0
	for _, v := range z {
		sum += math.Exp(float64(v))
	}
	return float32(math.Log(sum))
}

func pick(t *testing.T, z []float32, p api.SamplingParams, draw int) Choice {
	t.Helper()
	var pk Picker
	c, err := pk.Pick(z, lse(z), p, 42, 0, draw)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// with is DefaultSampling, changed.
func with(f func(*api.SamplingParams)) api.SamplingParams {
	p := api.DefaultSampling()
	f(&p)
	return p
}

// TestDistribution draws many tokens and compares the counts with what they should be: Pearson's chi-square with 1e-6 quantiles.
func TestDistribution(t *testing.T) {
	z := []float32{1.5, -0.3, 0.7, 1.5, float32(math.Inf(-1)), -2, 0.1}
	scaled := func(temperature float64, keep ...int) []float64 {
		p, sum := make([]float64, len(z)), 0.0
		for _, i := range keep {
			p[i] = math.Exp(float64(z[i]) / temperature)
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		return p
	}
	for _, c := range []struct {
		name   string
		params api.SamplingParams
		want   []float64
	}{
		{"T=1", api.DefaultSampling(), scaled(1, 0, 1, 2, 3, 5, 6)},
		{"T=0.5", with(func(p *api.SamplingParams) { p.Temperature = 0.5 }), scaled(0.5, 0, 1, 2, 3, 5, 6)},
		{"T=3", with(func(p *api.SamplingParams) { p.Temperature = 3 }), scaled(3, 0, 1, 2, 3, 5, 6)},
		{"top_k=3", with(func(p *api.SamplingParams) { p.TopK = 3 }), scaled(1, 0, 2, 3)},
		{"top_k=1", with(func(p *api.SamplingParams) { p.TopK = 1 }), scaled(1, 0)}, // a tie: the lower id
		{"top_k=100", with(func(p *api.SamplingParams) { p.TopK = 100 }), scaled(1, 0, 1, 2, 3, 5, 6)},
		{"top_p=0.7", with(func(p *api.SamplingParams) { p.TopP = 0.7 }), scaled(1, 0, 2, 3)},
		{"top_p=0", with(func(p *api.SamplingParams) { p.TopP = 0 }), scaled(1, 0)},
		{"top_p=1e-12", with(func(p *api.SamplingParams) { p.TopP = 1e-12 }), scaled(1, 0)},
		{"top_p of what top_k left", with(func(p *api.SamplingParams) { p.TopK, p.TopP = 3, 0.6 }), scaled(1, 0, 3)},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = 40000
			var pk Picker
			counts := make([]int, len(z))
			for i := range n {
				choice, err := pk.Pick(z, lse(z), c.params, 7, i%5, i/5)
				if err != nil {
					t.Fatal(err)
				}
				counts[choice.Token]++
			}
			chi, free := 0.0, -1
			for i, p := range c.want {
				if p == 0 {
					if counts[i] != 0 {
						t.Fatalf("token %d was drawn %d times, wanted never", i, counts[i])
					}
					continue
				}
				free++
				d := float64(counts[i]) - n*p
				chi += d * d / (n * p)
			}
			// 1e-6 quantiles of chi-square with 0..5 degrees of freedom
			if limit := []float64{1e-9, 23.9, 27.6, 30.7, 33.4, 35.9}[free]; chi > limit {
				t.Errorf("chi-square is %.1f with %d degrees of freedom, wanted below %.1f: counts %v", chi, free, limit, counts)
			}
		})
	}
}

// TestIndependence: neighbouring draws, samples and seeds are uncorrelated, and the same arguments give the same number.
func TestIndependence(t *testing.T) {
	const n = 20000
	for name, f := range map[string]func(i, lag int) float64{
		"draws":   func(i, lag int) float64 { return uniform(3, 0, i+lag) },
		"samples": func(i, lag int) float64 { return uniform(3, i+lag, 0) },
		"seeds":   func(i, lag int) float64 { return uniform(int64(i+lag), 0, 0) },
	} {
		mean, cov := 0.0, 0.0
		for i := range n {
			a, b := f(i, 0), f(i, 1)
			if a < 0 || a >= 1 || a != f(i, 0) {
				t.Fatalf("%s: number %d is %v", name, i, a)
			}
			mean += a / n
			cov += (a - 0.5) * (b - 0.5) * 12 / n
		}
		if math.Abs(mean-0.5) > 0.012 || math.Abs(cov) > 0.035 { // five standard deviations
			t.Errorf("%s: mean %.4f, correlation %.4f", name, mean, cov)
		}
	}
}

// TestManyTokens: the filters give on a large vocabulary what sorting all of it gives.
func TestManyTokens(t *testing.T) {
	z := make([]float32, 5000)
	for i := range z {
		z[i] = float32(8 * (uniform(1, 0, i) - 0.5))
	}
	for _, topP := range []float64{0.001, 0.3, 0.9, 0.9999999, 1 - 1e-16} {
		var pk Picker
		total := pk.weigh(z, 4, 1)
		pk.largest(func([]int32) bool { return false })
		sum, want := 0.0, 0
		for sum < topP*total && want < len(z) {
			sum += pk.w[pk.ids[want]]
			want++
		}
		worst := pk.w[pk.ids[want-1]]
		for draw := range 300 {
			c, err := pk.Pick(z, lse(z), with(func(p *api.SamplingParams) { p.TopP = topP }), 1, 0, draw)
			if err != nil {
				t.Fatal(err)
			}
			pk.weigh(z, 4, 1)
			if pk.w[c.Token] < worst {
				t.Fatalf("top_p %v: token %d is outside the nucleus of %d tokens", topP, c.Token, want)
			}
		}
	}
}

func TestGreedy(t *testing.T) {
	greedy := with(func(p *api.SamplingParams) { p.Temperature = 0 })
	for _, c := range []struct {
		z    []float32
		want int32
	}{
		{[]float32{1, 3, 2}, 1},
		{[]float32{2, 3, 3}, 1},
		{[]float32{float32(math.Inf(-1)), -5}, 1},
		{[]float32{0, 0, 0}, 0},
	} {
		if got := pick(t, c.z, greedy, 3); got.Token != c.want || got.LogProb != got.Raw {
			t.Errorf("greedy of %v is %+v, wanted token %d", c.z, got, c.want)
		}
	}
}

// TestLogProbs: scaled by the temperature and not by the filters; at 1 the bits of the raw value.
func TestLogProbs(t *testing.T) {
	z := []float32{0.3, -1.2, 2.5, 0.9}
	for _, temperature := range []float64{0.25, 0.7, 1, 2} {
		scaled := make([]float32, len(z))
		for i := range z {
			scaled[i] = float32(float64(z[i]) / temperature)
		}
		for _, topK := range []int{-1, 2} {
			p := with(func(p *api.SamplingParams) { p.Temperature, p.TopK = temperature, topK })
			for draw := range 20 {
				c := pick(t, z, p, draw)
				if c.Raw != z[c.Token]-lse(z) {
					t.Fatalf("raw is %v, wanted %v", c.Raw, z[c.Token]-lse(z))
				}
				want := float64(scaled[c.Token]) - float64(lse(scaled))
				if math.Abs(float64(c.LogProb)-want) > 1e-6 || temperature == 1 && c.LogProb != c.Raw {
					t.Fatalf("T=%v: logprob %v, wanted %v (raw %v)", temperature, c.LogProb, want, c.Raw)
				}
			}
		}
	}
}

func TestBadLogits(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		z    []float32
		want string
	}{
		{[]float32{0, nan}, "sample: the logit of token 1 is NaN: the weights have diverged"},
		{[]float32{inf, 0}, "sample: the logit of token 0 is +Inf: the weights have diverged"},
		{[]float32{-inf, -inf}, "sample: none of 2 logits is finite: the weights have diverged"},
	} {
		for _, temperature := range []float64{0, 1} {
			var pk Picker
			_, err := pk.Pick(c.z, 0, with(func(p *api.SamplingParams) { p.Temperature = temperature }), 0, 0, 0)
			if err == nil || err.Error() != c.want {
				t.Errorf("%v: %v, wanted %s", c.z, err, c.want)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		change func(*api.SamplingParams)
		want   string
	}{
		{func(p *api.SamplingParams) {}, ""},
		{func(p *api.SamplingParams) { p.Temperature, p.TopK, p.TopP = 0, 0, 0 }, ""},
		{func(p *api.SamplingParams) { p.MaxTokens = -1 }, "max_tokens is -1, wanted 0 (up to the context) or more"},
		{func(p *api.SamplingParams) { p.Temperature = -0.1 }, "temperature is -0.1, wanted a finite number >= 0"},
		{func(p *api.SamplingParams) { p.Temperature = nan }, "temperature is NaN, wanted a finite number >= 0"},
		{func(p *api.SamplingParams) { p.TopK = -2 }, "top_k is -2, wanted -1 (off) or more"},
		{func(p *api.SamplingParams) { p.TopP = 1.5 }, "top_p is 1.5, wanted 0..1"},
		{func(p *api.SamplingParams) { p.TopP = nan }, "top_p is NaN, wanted 0..1"},
		{func(p *api.SamplingParams) { p.Stop = []string{"a", ""} }, "stop string 1 is empty"},
	} {
		got := ""
		if err := Check(with(c.change)); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("got %q, wanted %q", got, c.want)
		}
	}
}

// pieces is a detokeniser that spells token i as pieces[i]; a piece may be part of a character.
type pieces struct {
	all  []string
	rest string
}

func (d *pieces) Push(id int32) string {
	d.rest += d.all[id]
	out := strings.ToValidUTF8(d.rest, "")
	d.rest = d.rest[len(out):]
	return out
}

func (d *pieces) Flush() string { return d.rest }

func TestStops(t *testing.T) {
	all := []string{"a", "b", "ab", "\n", "\nUser", ":", "é"[:1], "é"[1:], "x\n\nUser: y"}
	for _, c := range []struct {
		ids    []int32
		strs   []string
		tokens []int32
		want   int // tokens until the end, 0: none
	}{
		{nil, nil, []int32{0, 1, 2}, 0},
		{[]int32{5, 1}, nil, []int32{0, 1, 2}, 2},
		{nil, []string{"\n\nUser:"}, []int32{0, 3, 4, 5, 0}, 4}, // across three borders
		{nil, []string{"\n\nUser:"}, []int32{0, 8}, 2},          // inside one token
		{nil, []string{"bab", "aab"}, []int32{0, 0, 1}, 3},      // the second string
		{nil, []string{"aé"}, []int32{0, 6, 7}, 3},              // inside a character
		{nil, []string{"aaab"}, []int32{0, 0, 0, 0, 1}, 5},      // a false start before
		{[]int32{1}, []string{"ab"}, []int32{2}, 1},
		{nil, []string{"a"}, []int32{1, 0}, 2}, // one byte
	} {
		s := newStops(c.ids, c.strs, &pieces{all: all})
		got := 0
		for i, id := range c.tokens {
			if s.push(id) {
				got = i + 1
				break
			}
		}
		if got != c.want {
			t.Errorf("%v %q on %v ended after %d, wanted %d", c.ids, c.strs, c.tokens, got, c.want)
		}
	}
}

func ExampleCheck() {
	p := api.DefaultSampling()
	p.TopP = 2
	fmt.Println(Check(p))
	// Output: top_p is 2, wanted 0..1
}
