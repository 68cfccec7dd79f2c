package plugins

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Module is a loaded plugin. Any goroutine may use it.
type Module struct {
	host   *Host
	digest string
	size   int
	code   code
	meta   *Meta
	report Report
	refs   int // guarded by host.mu

	tookOptional bool // the self-test's batch had optional inputs
}

// Meta is what the module says about itself. Do not change it.
func (m *Module) Meta() *Meta { return m.meta }

// Digest is the SHA-256 of its bytes in hexadecimal.
func (m *Module) Digest() string { return m.digest }

// Record is what a run notes down to be repeated.
func (m *Module) Record() api.PluginRecord {
	return api.PluginRecord{Name: m.meta.Name, Version: m.meta.Version, Digest: m.digest, ABI: ABIVersion()}
}

// Report is what was found when the module was loaded; speed is not measured then.
func (m *Module) Report() Report { return m.report }

// Close gives one Load back. The module is unloaded with the last; calls that run then go on, later ones fail.
func (m *Module) Close() error {
	h := m.host
	h.mu.Lock()
	m.refs--
	last := m.refs == 0 && h.modules[m.digest] == m
	if last {
		delete(h.modules, m.digest)
	}
	h.mu.Unlock()
	if !last {
		return nil
	}
	return m.code.Close(context.Background())
}

// hold keeps the module loaded until the function that it returns is called.
func (m *Module) hold() (release func(), err error) {
	m.host.mu.Lock()
	defer m.host.mu.Unlock()
	switch {
	case m.host.closed:
		return nil, errHostClosed
	case m.refs <= 0:
		return nil, api.Errorf(api.Closed, "plugin %s is unloaded", m)
	}
	m.refs++
	return func() { m.Close() }, nil
}

// String names the module as errors do.
func (m *Module) String() string {
	if m.meta == nil {
		return "of digest " + m.digest[:12]
	}
	return fmt.Sprintf("%s %s (%s)", m.meta.Name, m.meta.Version, m.digest[:12])
}

// named puts the plugin's name in front of an error.
func (m *Module) named(err error) error {
	code := api.Internal
	var e *api.Error
	if errors.As(err, &e) {
		code = e.Code
	}
	return api.Errorf(code, "plugin %s: %w", m, err)
}

// describe asks for version and metadata.
func (m *Module) describe(ctx context.Context) error {
	leave, err := m.host.place(ctx, m.host.running)
	if err != nil {
		return err
	}
	defer leave()
	i, err := m.start(ctx, m.host.lim.allowance(0))
	if err != nil {
		return refusal(err)
	}
	defer i.Close(ctx)
	version, err := i.invoke(exportVersion)
	if err != nil {
		return refusal(err)
	}
	if err := checkVersion(uint32(version)); err != nil {
		return err
	}
	at, err := i.invoke(exportDescribe)
	if err != nil {
		return refusal(err)
	}
	ptr, n := uint32(at>>32), uint32(at)
	if n > maxDescribe {
		return bad("its metadata has %d bytes, the limit is %d", n, maxDescribe)
	}
	text, ok := i.Memory().Read(ptr, n)
	if !ok {
		return bad("loss_describe returns %d bytes at %d, outside its memory of %d", n, ptr, i.Memory().Size())
	}
	meta, err := parseMeta(slices.Clone(text))
	if err != nil {
		return err
	}
	if meta.MinMemoryPages > m.host.lim.MemoryPages {
		return bad("it needs %d pages of memory, the limit is %d", meta.MinMemoryPages, m.host.lim.MemoryPages)
	}
	m.meta, m.report.Meta, m.report.StartFuel = meta, *meta, i.spent()
	m.report.Pages = int(i.Memory().Size() >> 16)
	return nil
}

// refusal makes what a module did wrong while it was loaded the fault of its bytes.
func refusal(err error) error {
	var e *api.Error
	if errors.As(err, &e) && e.Code != api.Internal {
		return err
	}
	return bad("%w", err)
}

// result is what one call gave.
type result struct {
	loss    float64
	metrics []metric
	fuel    int64
	pages   int
}

type metric struct {
	name  string
	value float64
}

// run evaluates one chunk in a fresh instance and sets weights, a slice for each of its datums.
func (m *Module) run(ctx context.Context, b *batch, c *chunk, weights [][]float32) (res result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = api.Errorf(api.Internal, "the host failed: %v", p)
		}
	}()
	l, err := m.meta.plan(b, c)
	if err != nil {
		return res, err
	}
	if l.total > m.host.lim.RequestBytes {
		return res, bad("the request has %d bytes, the limit is %d", l.total, m.host.lim.RequestBytes)
	}
	i, err := m.start(ctx, m.host.lim.allowance(c.elems+c.hi-c.lo))
	if err != nil {
		return res, err
	}
	defer i.Close(i.ctx)
	defer m.flushLog(i)
	ptr, err := i.invoke(exportAlloc, uint64(l.total))
	if err != nil {
		return res, err
	}
	at := uint32(ptr)
	switch {
	case at == 0:
		return res, api.Errorf(api.Internal, "loss_alloc has no %d bytes", l.total)
	case at%16 != 0:
		return res, api.Errorf(api.Internal, "loss_alloc returned %d, which is not a multiple of 16", at)
	}
	view, ok := i.Memory().Read(at, uint32(l.total))
	if !ok {
		return res, api.Errorf(api.Internal, "loss_alloc returned %d for %d bytes, its memory has %d", at, l.total, i.Memory().Size())
	}
	l.fill(view, b, c)
	status, err := i.invoke(exportCall, uint64(at), uint64(l.total))
	if err != nil {
		return res, err
	}
	// The memory may have moved, but it never shrinks.
	if view, ok = i.Memory().Read(at, uint32(l.total)); !ok {
		return res, api.Errorf(api.Internal, "its memory shrank")
	}
	res.fuel, res.pages = i.spent(), int(i.Memory().Size()>>16)
	if status := int32(status); status != statusOK {
		return res, failed(status, errorText(view, l))
	}
	return res, m.read(&res, view, l, b, c, weights)
}

// errorText is what the guest says about its failure.
func errorText(view []byte, l *layout) string {
	n := min(binary.LittleEndian.Uint32(view[offOutError:]), maxErrorText)
	if text := cleanText(view[l.text:][:n]); text != "" {
		return text
	}
	return "(no text)"
}

func failed(status int32, text string) error {
	switch status {
	case statusInput:
		return bad("%s", text)
	case statusNumeric:
		return api.Errorf(api.Internal, "numerical failure: %s", text)
	}
	return api.Errorf(api.Internal, "failed with status %d: %s", status, text)
}

// read takes the outputs out of a request, and refuses what is not finite or too large.
func (m *Module) read(res *result, view []byte, l *layout, b *batch, c *chunk, weights [][]float32) error {
	res.loss = math.Float64frombits(binary.LittleEndian.Uint64(view[offOutLoss:]))
	if math.IsNaN(res.loss) || math.IsInf(res.loss, 0) {
		return api.Errorf(api.Internal, "its loss is %v, wanted a finite number", res.loss)
	}
	n := binary.LittleEndian.Uint32(view[offOutMetrics:])
	if n > maxMetrics {
		return api.Errorf(api.Internal, "it returned %d metrics, the limit is %d", n, maxMetrics)
	}
	for j := range int(n) {
		x := view[l.metrics+metricSize*j:]
		size := binary.LittleEndian.Uint32(x[8:])
		if size > metricName {
			return api.Errorf(api.Internal, "the name of its metric %d has %d bytes, the limit is %d", j, size, metricName)
		}
		name := string(x[16:][:size])
		if err := checkMetric(name); err != nil {
			return api.Errorf(api.Internal, "%w", err)
		}
		if !strings.Contains(name, ":") {
			name += ":mean"
		}
		if slices.ContainsFunc(res.metrics, func(o metric) bool { return o.name == name }) {
			return api.Errorf(api.Internal, "its metric %s appears twice", name)
		}
		res.metrics = append(res.metrics, metric{name, math.Float64frombits(binary.LittleEndian.Uint64(x))})
	}
	if b.evaluate {
		return nil
	}
	all, ok := takeFloats(view[l.weights:][:4*c.elems], math.Float32bits(float32(m.host.lim.Weight)))
	for i := range weights {
		dims := b.dims[c.lo+i]
		n := int(dims[0]) * int(dims[1])
		weights[i], all = all[:n:n], all[n:]
	}
	if !ok {
		return m.badWeight(weights, c.lo)
	}
	return nil
}

// badWeight names the first weight that is not allowed, in weights of the datums from first on.
func (m *Module) badWeight(weights [][]float32, first int) error {
	most := float32(m.host.lim.Weight)
	for i, w := range weights {
		if j := slices.IndexFunc(w, func(v float32) bool { return !(v >= -most && v <= most) }); j >= 0 {
			return api.Errorf(api.Internal, "datum %d: weight %d is %v, wanted a number from %v to %v", first+i, j, w[j], -most, most)
		}
	}
	return api.Errorf(api.Internal, "a weight is not a number from %v to %v", -most, most)
}
