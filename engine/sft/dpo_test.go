package sft

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/loss"
)

// pairData is n pairs of different lengths with log-probabilities at random.
func pairData(n int) (data []api.Datum, logProbs [][]float32) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2 * n {
		tokens := make([]int32, 4+rng.IntN(5))
		d := Completion(tokens, 2+rng.IntN(2)).Datum(1)
		lp := make([]float32, len(tokens)-1)
		for j := range lp {
			lp[j] = -3 * rng.Float32()
		}
		data, logProbs = append(data, d), append(logProbs, lp)
	}
	return data, logProbs
}

func references(data []api.Datum, logProbs [][]float32) []float64 {
	out := make([]float64, len(data))
	for i := range data {
		out[i] = AnswerLogProb(data[i], logProbs[i])
	}
	return out
}

// TestDPOAtReference: as long as the policy is the reference the loss is ln 2 to the last bit, whatever beta.
func TestDPOAtReference(t *testing.T) {
	for _, n := range []int{1, 3, 7} {
		data, lp := pairData(n)
		for _, beta := range []float64{0.01, 0.1, 5} {
			out, err := DPO{Beta: beta, Reference: references(data, lp)}.Eval(t.Context(), loss.Input{Data: data, LogProbs: lp})
			if err != nil {
				t.Fatal(err)
			}
			if got := out.Metrics["loss:sum"]; math.Abs(got-math.Ln2) > 2e-16 || n == 1 && got != math.Ln2 {
				t.Errorf("%d pairs, beta %v: loss %v", n, beta, got)
			}
			if out.Metrics["accuracy:mean"] != 0 || out.Metrics["margin:mean"] != 0 {
				t.Errorf("%v", out.Metrics)
			}
		}
	}
}

// TestDPOByHand has one pair worked out with equation 7.
func TestDPOByHand(t *testing.T) {
	data := []api.Datum{Completion([]int32{1, 2, 3}, 1).Datum(1), Completion([]int32{1, 4}, 1).Datum(1)}
	out, err := DPO{Beta: 0.5, Reference: []float64{-4, -1}}.Eval(t.Context(), loss.Input{Data: data, LogProbs: [][]float32{{-1, -2}, {-2}}})
	if err != nil {
		t.Fatal(err)
	}
	// Chosen: 0.5·(-3+4) = 0.5; rejected: 0.5·(-2+1) = -0.5; margin 1; -log σ(1) = 0.31326168751822286.
	m := out.Metrics
	if math.Abs(m["loss:sum"]-0.31326168751822286) > 1e-15 || m["margin:mean"] != 1 || m["accuracy:mean"] != 1 || m["chosen_reward:mean"] != 0.5 || m["rejected_reward:mean"] != -0.5 {
		t.Errorf("%v", m)
	}
	slope := float32(0.5 / (1 + math.E)) // β·σ(-1)
	if w := out.Weights; w[0][0] != slope || w[0][1] != slope || w[1][0] != -slope {
		t.Errorf("weights %v, wanted ±%v", w, slope)
	}
}

// TestDPOGradient: the weights are -∂L/∂logprob, by central differences.
func TestDPOGradient(t *testing.T) {
	data, ref := pairData(3)
	_, lp := pairData(3)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range lp {
		for j := range lp[i] {
			lp[i][j] += rng.Float32() - 0.5
		}
	}
	l := DPO{Beta: 0.7, Reference: references(data, ref)}
	value := func() float64 {
		out, err := l.Eval(t.Context(), loss.Input{Data: data, LogProbs: lp})
		if err != nil {
			t.Fatal(err)
		}
		return out.Metrics["loss:sum"]
	}
	out, err := l.Eval(t.Context(), loss.Input{Data: data, LogProbs: lp})
	if err != nil {
		t.Fatal(err)
	}
	const h = 1.0 / 64 // exact in float32
	for i := range lp {
		for j, at := range lp[i] {
			lp[i][j] = at + h
			up := value()
			lp[i][j] = at - h
			down := value()
			lp[i][j] = at
			if got, want := float64(out.Weights[i][j]), -(up-down)/(2*h); math.Abs(got-want) > 1e-5 {
				t.Errorf("datum %d, position %d: weight %v, differences give %v", i, j, got, want)
			}
		}
	}
}

// TestDPOExtremes: margins far from 0 neither overflow nor become NaN.
func TestDPOExtremes(t *testing.T) {
	data := []api.Datum{Completion([]int32{1, 2}, 1).Datum(1), Completion([]int32{1, 4}, 1).Datum(1)}
	for _, c := range []struct{ chosen, want float64 }{{1e4, 0}, {-1e4, 1e4}} {
		out, err := DPO{Beta: 1, Reference: []float64{-c.chosen, 0}}.Eval(t.Context(), loss.Input{Data: data, LogProbs: [][]float32{{0}, {0}}})
		if err != nil || out.Metrics["loss:sum"] != c.want {
			t.Errorf("margin %v: loss %v, %v", c.chosen, out.Metrics["loss:sum"], err)
		}
		for _, w := range out.Weights {
			if math.IsNaN(float64(w[0])) || math.Abs(float64(w[0])) > 1 {
				t.Errorf("margin %v: weights %v", c.chosen, out.Weights)
			}
		}
	}
}

func TestDPOCheck(t *testing.T) {
	data, _ := pairData(1)
	heavy := []api.Datum{data[0], Completion([]int32{1, 2, 3}, 1).Datum(0.5)}
	for _, c := range []struct {
		l      DPO
		data   []api.Datum
		config map[string]float64
		want   string
	}{
		{DPO{Beta: 0, Reference: make([]float64, 2)}, data, nil, "beta is 0"},
		{DPO{Beta: math.NaN(), Reference: make([]float64, 2)}, data, nil, "beta is NaN"},
		{DPO{Beta: 1, Reference: make([]float64, 1)}, data[:1], nil, "1 datums, wanted a chosen and a rejected one"},
		{DPO{Beta: 1}, data, nil, "0 reference log-probabilities for 2 datums"},
		{DPO{Beta: 1, Reference: make([]float64, 2)}, data, map[string]float64{"x": 1}, "takes no configuration"},
		{DPO{Beta: 1, Reference: make([]float64, 2)}, heavy, nil, "datum 1: weights[0] is 0.5, wanted 0 or 1"},
	} {
		if err := c.l.Check(c.data, c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, wanted %q", err, c.want)
		}
	}
}
