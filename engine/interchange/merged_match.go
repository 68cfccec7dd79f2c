package interchange

import (
	"context"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/lora"
)

// module is one adapted module: its factors, and the weight [out, in] they belong to, which is there once per expert if there are any.
type module struct {
	name    string
	in, out int
	experts int  // 0: a plain weight
	ownA    bool // every expert has its own A and B is shared, or the other way round
	rank    int
	a, b    api.TensorInfo
}

// matchModules finds the module of every factor, and refuses a factor that has none, has another shape, or lacks its partner.
func matchModules(a *Adapter, sites []lora.Site) (map[string]*module, error) {
	known := map[string]*module{}
	for _, s := range sites {
		for _, p := range s.Parts {
			known[p.Module] = &module{name: p.Module, in: s.In, out: p.Out, experts: s.Experts, ownA: s.OwnA, rank: a.Lora.Rank}
		}
	}
	found := map[string]*module{}
	for _, t := range a.Factors {
		name, isA := strings.CutSuffix(t.Name, ".lora_A.weight")
		isB := false
		if !isA {
			name, isB = strings.CutSuffix(t.Name, ".lora_B.weight")
		}
		m := known[name]
		if m == nil || !isA && !isB {
			return nil, api.Errorf(api.BadRequest, "adapter tensor %q belongs to no module of the base", t.Name)
		}
		into, want := &m.a, m.shapeA()
		if isB {
			into, want = &m.b, m.shapeB()
		}
		switch {
		case into.Name != "":
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s appears twice", t.Name)
		case !slices.Equal(t.Shape, want):
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s has shape %v, wanted %v", t.Name, t.Shape, want)
		case t.DType != "F32":
			return nil, api.Errorf(api.Unsupported, "adapter tensor %s is %s, wanted F32", t.Name, t.DType)
		}
		*into = t
		found[name] = m
	}
	for _, t := range a.Factors { // in their order, so that the message does not depend on the map's
		m := found[t.Name[:len(t.Name)-len(".lora_A.weight")]]
		if m.a.Name == "" || m.b.Name == "" {
			return nil, api.Errorf(api.BadRequest, "adapter tensor %s has no partner: a module needs lora_A and lora_B", t.Name)
		}
	}
	if len(found) == 0 {
		return nil, api.Errorf(api.BadRequest, "the adapter has no factors")
	}
	return found, nil
}

func (m *module) shapeA() []int {
	switch {
	case m.experts == 0:
		return []int{m.rank, m.in}
	case m.ownA:
		return []int{m.experts, m.rank, m.in}
	}
	return []int{1, m.rank, m.in}
}

func (m *module) shapeB() []int {
	switch {
	case m.experts == 0:
		return []int{m.out, m.rank}
	case m.ownA:
		return []int{1, m.out, m.rank}
	}
	return []int{m.experts, m.out, m.rank}
}

// factors are those of a module in memory: A [rank, in] and B [out, rank], once or once per expert.
type factors struct {
	module *module
	a, b   []float32
}

// of returns an expert's A and B.
func (f *factors) of(expert int) (a, b []float32) {
	m := f.module
	nA, nB := m.rank*m.in, m.out*m.rank
	switch {
	case m.experts == 0:
		return f.a, f.b
	case m.ownA:
		return f.a[expert*nA:][:nA], f.b
	}
	return f.a, f.b[expert*nB:][:nB]
}

// factorCache keeps the factors of the modules used last: the tensors of one layer's experts lie in turn in a file, and belong to three.
type factorCache struct {
	a    *Adapter
	last []*factors
}

const keptModules = 3

func (c *factorCache) get(ctx context.Context, m *module) (*factors, error) {
	for _, f := range c.last {
		if f.module == m {
			return f, nil
		}
	}
	f := &factors{module: m}
	for _, x := range []struct {
		t    api.TensorInfo
		into *[]float32
	}{{m.a, &f.a}, {m.b, &f.b}} {
		v, err := c.a.Floats(ctx, x.t)
		if err != nil {
			return nil, err
		}
		for i, y := range v {
			if y-y != 0 {
				return nil, api.Errorf(api.BadRequest, "adapter tensor %s: value %d is %v: it is damaged, or the training diverged", x.t.Name, i, y)
			}
		}
		*x.into = v
	}
	if len(c.last) == keptModules {
		c.last = slices.Delete(c.last, 0, 1)
	}
	c.last = append(c.last, f)
	return f, nil
}
