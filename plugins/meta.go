package plugins

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Meta is what a module says about itself: see ABI.md, metadata.
type Meta struct {
	Name           string    `json:"name"`
	Version        string    `json:"version"`
	Summary        string    `json:"summary,omitempty"`
	License        string    `json:"license,omitempty"`
	Scope          Scope     `json:"scope"`
	Grouping       *Grouping `json:"grouping,omitempty"`
	Inputs         []Input   `json:"inputs,omitempty"`
	Params         []Param   `json:"params,omitempty"`
	Metrics        []string  `json:"metrics,omitempty"`
	MinMemoryPages int       `json:"min_memory_pages,omitempty"`
}

// Scope says what a loss is a sum of.
type Scope string

// A loss of ScopeDatum is a sum of terms of single datums, one of ScopeGroup of groups of datums; one of ScopeBatch may be anything.
const (
	ScopeDatum Scope = "datum"
	ScopeGroup Scope = "group"
	ScopeBatch Scope = "batch"
)

// Grouping says which datums belong together: every Size of them in turn ("consecutive"), or those with the same value
// of the int64 input named Name ("input").
type Grouping struct {
	By   string `json:"by"`
	Size int    `json:"size,omitempty"`
	Name string `json:"name,omitempty"`
}

// Input is a named tensor that a loss reads from each datum. With Like "logprobs" it has the shape of the targets; otherwise Shape, or
// any of one or two dimensions when that is nil.
type Input struct {
	Name     string `json:"name"`
	DType    string `json:"dtype"` // "float32" or "int64"
	Like     string `json:"like,omitempty"`
	Shape    []int  `json:"shape,omitempty"`
	Optional bool   `json:"optional,omitempty"`
	Summary  string `json:"summary,omitempty"`
}

// Param is a number of loss_fn_config. Without a default it must be given.
type Param struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"` // "number", "bool" (0 or 1) or "enum" (an index of Values)
	Default *float64 `json:"default,omitempty"`
	Min     *float64 `json:"min,omitempty"`
	Max     *float64 `json:"max,omitempty"`
	Values  []string `json:"values,omitempty"`
	Summary string   `json:"summary,omitempty"`
}

var (
	pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	inputName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]{0,63}$`)
	metricForm = regexp.MustCompile(`^[A-Za-z0-9_./-]+(:(sum|mean|min|max))?$`)
)

// maxJSONDepth is deeper than metadata can be.
const maxJSONDepth = 6

// parseMeta reads metadata. Whatever it does not know, it refuses: a misspelt "optional" must not pass.
func parseMeta(b []byte) (*Meta, error) {
	if len(b) == 0 || len(b) > maxDescribe {
		return nil, bad("its metadata has %d bytes, wanted 1 to %d", len(b), maxDescribe)
	}
	if !utf8.Valid(b) {
		return nil, bad("its metadata is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := plainJSON(dec, 0); err != nil {
		return nil, bad("its metadata is not JSON as it is wanted: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, bad("its metadata goes on after the object")
	}
	var m Meta
	dec = json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, bad("its metadata is not as it is wanted: %w", err)
	}
	if m.Scope == "" {
		m.Scope = ScopeBatch
	}
	if err := m.check(); err != nil {
		return nil, bad("its metadata: %w", err)
	}
	return &m, nil
}

// plainJSON passes one value, and refuses what encoding/json would let through: repeated names, names in another case, and null.
func plainJSON(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	if t == nil {
		return errors.New("null is no value")
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxJSONDepth {
		return errors.New("nested too deeply")
	}
	seen := map[string]bool{}
	for dec.More() {
		if open == '{' {
			t, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if seen[name] || name != strings.ToLower(name) {
				return errors.New("name " + clip(name, 64) + " is repeated or not in small letters")
			}
			seen[name] = true
		}
		if err := plainJSON(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

func (m *Meta) check() error {
	switch {
	case !pluginName.MatchString(m.Name):
		return bad("name %q, wanted letters, digits, _ . - (at most 64)", clip(m.Name, 80))
	case m.Version == "" || len(m.Version) > 64 || cleanText([]byte(m.Version)) != m.Version:
		return bad("version %q, wanted 1 to 64 printable characters", clip(m.Version, 80))
	case len(m.Summary) > 1024 || len(m.License) > 256:
		return bad("summary or license is too long (at most 1024 and 256 bytes)")
	case len(m.Inputs) > maxInputs:
		return bad("%d inputs, the limit is %d", len(m.Inputs), maxInputs)
	case len(m.Params) > maxParameter:
		return bad("%d params, the limit is %d", len(m.Params), maxParameter)
	case len(m.Metrics) > maxMetrics:
		return bad("%d metrics, the limit is %d", len(m.Metrics), maxMetrics)
	case m.MinMemoryPages < 0 || m.MinMemoryPages > 1<<16:
		return bad("min_memory_pages is %d", m.MinMemoryPages)
	}
	m.Summary, m.License = cleanText([]byte(m.Summary)), cleanText([]byte(m.License))
	for i := range m.Inputs {
		in := &m.Inputs[i]
		if err := in.check(); err != nil {
			return bad("input %d: %w", i, err)
		}
		if slices.ContainsFunc(m.Inputs[:i], func(o Input) bool { return o.Name == in.Name }) {
			return bad("input %q is declared twice", in.Name)
		}
	}
	for i := range m.Params {
		p := &m.Params[i]
		if err := p.check(); err != nil {
			return bad("param %d: %w", i, err)
		}
		if slices.ContainsFunc(m.Params[:i], func(o Param) bool { return o.Name == p.Name }) {
			return bad("param %q is declared twice", p.Name)
		}
	}
	for _, name := range m.Metrics {
		if err := checkMetric(name); err != nil {
			return err
		}
	}
	return m.checkGrouping()
}

func (m *Meta) checkGrouping() error {
	g := m.Grouping
	switch m.Scope {
	case ScopeDatum, ScopeBatch:
	case ScopeGroup:
		if g == nil {
			return bad("scope \"group\" needs a grouping")
		}
	default:
		return bad("scope %q, wanted datum, group or batch", clip(string(m.Scope), 64))
	}
	if g == nil {
		return nil
	}
	if m.Scope == ScopeDatum {
		return bad("scope \"datum\" has no grouping")
	}
	switch g.By {
	case "consecutive":
		if g.Size < 1 || g.Size > 1<<16 || g.Name != "" {
			return bad("grouping by consecutive needs a size of 1 to 65536, and no name")
		}
	case "input":
		ok := slices.ContainsFunc(m.Inputs, func(i Input) bool {
			return i.Name == g.Name && i.DType == "int64" && slices.Equal(i.Shape, []int{1}) && !i.Optional
		})
		if !ok || g.Size != 0 {
			return bad("grouping by input needs the name of a declared input of dtype int64 and shape [1] that is not optional, and no size")
		}
	default:
		return bad("grouping by %q, wanted consecutive or input", clip(g.By, 64))
	}
	return nil
}

func (i *Input) check() error {
	switch {
	case !inputName.MatchString(i.Name):
		return bad("name %q, wanted letters, digits, _ . / - (at most 64)", clip(i.Name, 80))
	case i.DType != "float32" && i.DType != "int64":
		return bad("%s: dtype %q, wanted float32 or int64", i.Name, clip(i.DType, 64))
	case i.Like != "" && i.Like != "logprobs":
		return bad("%s: like %q, wanted logprobs", i.Name, clip(i.Like, 64))
	case i.Like != "" && i.Shape != nil:
		return bad("%s has both like and shape", i.Name)
	case i.Shape != nil && (len(i.Shape) < 1 || len(i.Shape) > 2):
		return bad("%s: a shape has one or two dimensions, this one %d", i.Name, len(i.Shape))
	case i.Name == "target_tokens" && (i.DType != "int64" || i.Like == "" || i.Optional):
		return bad("target_tokens is int64, like logprobs and always there")
	}
	if len(i.Summary) > 1024 {
		return bad("%s: the summary is too long", i.Name)
	}
	i.Summary = cleanText([]byte(i.Summary))
	for _, d := range i.Shape {
		if d < 1 || d > 1<<20 {
			return bad("%s: shape %v", i.Name, i.Shape)
		}
	}
	return nil
}

func (p *Param) check() error {
	if !inputName.MatchString(p.Name) {
		return bad("name %q, wanted letters, digits, _ . / - (at most 64)", clip(p.Name, 80))
	}
	if len(p.Summary) > 1024 {
		return bad("%s: the summary is too long", p.Name)
	}
	p.Summary = cleanText([]byte(p.Summary))
	switch p.Type {
	case "number":
		if p.Values != nil {
			return bad("%s: values belong to type enum", p.Name)
		}
		if p.Min != nil && p.Max != nil && *p.Min > *p.Max {
			return bad("%s: min %v is above max %v", p.Name, *p.Min, *p.Max)
		}
	case "bool", "enum":
		if p.Min != nil || p.Max != nil || p.Type == "bool" && p.Values != nil {
			return bad("%s: min and max belong to type number, values to type enum", p.Name)
		}
		if p.Type == "enum" && (len(p.Values) < 1 || len(p.Values) > 64) {
			return bad("%s: %d values, wanted 1 to 64", p.Name, len(p.Values))
		}
		for _, v := range p.Values {
			if v == "" || len(v) > 64 || cleanText([]byte(v)) != v {
				return bad("%s: value %q, wanted 1 to 64 printable characters", p.Name, clip(v, 80))
			}
		}
	default:
		return bad("%s: type %q, wanted number, bool or enum", p.Name, clip(p.Type, 64))
	}
	if p.Default != nil {
		if err := p.accepts(*p.Default); err != nil {
			return bad("default: %w", err)
		}
	}
	return nil
}

// accepts says whether a value may be given.
func (p *Param) accepts(v float64) error {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return bad("%s is %v, wanted a finite number", p.Name, v)
	case p.Type == "bool" && v != 0 && v != 1:
		return bad("%s is %v, wanted 0 or 1", p.Name, v)
	case p.Type == "enum" && (v != math.Trunc(v) || v < 0 || v >= float64(len(p.Values))):
		return bad("%s is %v, wanted a whole number from 0 (%s) to %d (%s)", p.Name, v, p.Values[0], len(p.Values)-1, p.Values[len(p.Values)-1])
	case p.Min != nil && v < *p.Min:
		return bad("%s is %v, wanted at least %v", p.Name, v, *p.Min)
	case p.Max != nil && v > *p.Max:
		return bad("%s is %v, wanted at most %v", p.Name, v, *p.Max)
	}
	return nil
}

// checkMetric refuses names that do not fit, and those of the host.
func checkMetric(name string) error {
	switch base, _, _ := strings.Cut(name, ":"); {
	case len(name) > metricName || !metricForm.MatchString(name):
		return bad("metric %q, wanted letters, digits, _ . / - and one of :sum :mean :min :max (at most %d bytes)", clip(name, 64), metricName)
	case base == "loss" || strings.HasPrefix(base, "plugin/"):
		return bad("metric %q is the host's own", name)
	}
	return nil
}

// params are the values of a configuration in the declared order, with defaults.
func (m *Meta) params(config map[string]float64) ([]float64, error) {
	for name := range config {
		if !slices.ContainsFunc(m.Params, func(p Param) bool { return p.Name == name }) {
			return nil, bad("loss_fn_config: %s does not know %q, wanted %s", m.Name, name, m.paramNames())
		}
	}
	out := make([]float64, len(m.Params))
	for i, p := range m.Params {
		v, given := config[p.Name]
		switch {
		case given:
			if err := p.accepts(v); err != nil {
				return nil, bad("loss_fn_config: %w", err)
			}
		case p.Default != nil:
			v = *p.Default
		default:
			return nil, bad("loss_fn_config: %s needs %q; it has no default", m.Name, p.Name)
		}
		out[i] = v
	}
	return out, nil
}

func (m *Meta) paramNames() string {
	if len(m.Params) == 0 {
		return "no keys"
	}
	names := make([]string, len(m.Params))
	for i, p := range m.Params {
		names[i] = p.Name
	}
	return strings.Join(names, ", ")
}
