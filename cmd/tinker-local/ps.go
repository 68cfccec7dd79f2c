package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/engine/api"
)

// psTime is in what time a server tells what it does: it need not wait for its device.
const psTime = 10 * time.Second

func psCommand(a *app) *cobra.Command {
	var every time.Duration
	c := &cobra.Command{
		Use:   "ps",
		Short: "Show what the server has and does: models, sessions, runs, samplers, queues, memory",
		Long: "ps asks the server that has the state directory (--state) open what it has loaded, for whom, and what it is at. The exit code is 0\n" +
			"when a server answers.\n\n" +
			"OPEN counts the requests of a session that have not ended, KEPT the results that wait to be fetched, or have just been. Of a run,\n" +
			"QUEUED counts the operations that wait and SAVING the saves and loads on their way. Products are multiply-adds with a base\n" +
			"model's weights since it was loaded.",
		Example: "  tinker-local ps\n  tinker-local ps --watch\n  tinker-local ps --json",
		RunE: func(c *cobra.Command, _ []string) error {
			if !c.Flags().Changed("watch") {
				return a.ps(c.Context(), a.out)
			}
			if every <= 0 {
				return usageError{c, fmt.Errorf("--watch is %v, wanted more than 0", every)}
			}
			return a.watch(c.Context(), every)
		},
	}
	c.Flags().DurationVar(&every, "watch", 0, "show it again and again, every 2 s or as long as --watch=DURATION says, until ctrl-C")
	c.Flags().Lookup("watch").NoOptDefVal = "2s"
	return c
}

// watch is ps again and again. On a terminal each picture takes the place of the last.
func (a *app) watch(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var picture strings.Builder
		err := a.ps(ctx, &picture)
		if ctx.Err() != nil {
			return nil // ctrl-C is how it ends
		}
		if err != nil {
			return err
		}
		if terminal(a.out) {
			const home, clear = "\x1b[H", "\x1b[2J"
			fmt.Fprint(a.out, home+clear)
		}
		fmt.Fprintln(a.out, picture.String())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ps writes one picture.
func (a *app) ps(ctx context.Context, w io.Writer) error {
	if a.state == "" {
		return api.Errorf(api.BadRequest, "a server is found by its state directory, and none is named: give --state DIR")
	}
	at, err := a.served()
	if err != nil {
		return err
	}
	if at == nil {
		return api.Errorf(api.NotFound, "no server runs for the state directory %s; to start one: tinker-local serve --state %s", a.state, a.state)
	}
	r, err := at.report(ctx)
	if err != nil {
		return api.Errorf(api.CodeOf(err), "no server runs for the state directory %s, it seems: process %d, which did, cannot be asked at %s: %w", a.state, at.PID, at.URL, err)
	}
	pictured := *a
	pictured.out = w
	if a.json {
		return pictured.printJSON(r)
	}
	pictured.picture(at, r, time.Now())
	return nil
}

// report asks the server.
func (s *serving) report(ctx context.Context) (out server.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, psTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/local/v1/status", nil)
	if err != nil {
		return out, err
	}
	r.Header.Set("X-API-Key", s.Key)
	web := s.Client()
	defer web.CloseIdleConnections()
	answer, err := web.Do(r)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		return out, api.Errorf(api.Unsupported, "it answers %s: %s", answer.Status, printable(string(text)))
	}
	return out, json.NewDecoder(answer.Body).Decode(&out)
}

// picture is a report for people.
func (a *app) picture(at *serving, r server.Report, now time.Time) {
	s := r.Server
	state := "loading its models"
	switch {
	case s.Stopping:
		state = "being stopped"
	case s.Ready:
		state = "ready"
	}
	a.say("tinker-local %s at %s: %s. Process %d, up %s.", printable(s.Version), at.URL, state, s.PID, spanText(now.Sub(s.Started)))
	a.say("State directory: %s", a.state)
	a.say("Device: %s, %s.", r.Device, doingText(r, now))
	a.say("Memory: %s", memoryText(r.Memory))
	a.say("Requests: %d open and %d kept results hold %s of %s; %d of %d samples; %s being answered; %d of %d connections.",
		s.Open, s.Kept, bytesText(s.HeldBytes), bytesText(s.HeldLimit), r.SampleRequests, r.SampleRequestLimit, count(int(s.Calls), "call"), s.Connections, s.ConnectionLimit)
	if s.Programs > 0 {
		a.say("Beside it: %s of this machine's command line.", count(s.Programs, "program"))
	}
	a.bases(r, now)
	a.sessions(r, now)
	a.runs(r, now)
	a.samplers(r)
}

// doingText is what the device is at.
func doingText(r server.Report, now time.Time) string {
	if r.State != api.StatusReady {
		return strings.TrimSpace(strings.ReplaceAll(r.State, "_", " ") + " " + printable(r.Error))
	}
	out := "idle"
	if r.Doing != "" {
		out = fmt.Sprintf("%s for %s", printable(r.Doing), spanText(now.Sub(r.Since)))
	}
	if l := r.Loading; l != nil && l.Total > 0 {
		out += fmt.Sprintf(", loading %s: %d %%", printable(l.Model), 100*l.Done/l.Total)
	}
	if r.QueuedJobs > 0 {
		out += fmt.Sprintf(", %s waiting", count(r.QueuedJobs, "job"))
	}
	return out
}

func memoryText(m api.MemoryStatus) string {
	out := bytesText(m.Used) + " used"
	if m.Limit > 0 {
		out += " of a limit of " + bytesText(m.Limit)
	}
	if m.Free > 0 && m.Total > 0 {
		out += fmt.Sprintf(", %s of %s free", bytesText(m.Free), bytesText(m.Total))
	}
	var back []string
	if m.IdleBytes > 0 {
		back = append(back, bytesText(m.IdleBytes)+" of idle models")
	}
	if m.Holds > 0 {
		back = append(back, fmt.Sprintf("%s of %s", bytesText(m.HoldBytes), count(m.Holds, "kept forward")))
	}
	if back != nil {
		out += "; given back when it is needed: " + strings.Join(back, ", ")
	}
	return out + "."
}

// section is a table below a line of its own, with numbers to the right from a column on.
func (a *app) section(what string, header table.Row, right ...int) table.Writer {
	a.say("\n%s", what)
	t := a.table()
	t.AppendHeader(header)
	var configs []table.ColumnConfig
	for _, n := range right {
		configs = append(configs, table.ColumnConfig{Number: n, Align: text.AlignRight})
	}
	t.SetColumnConfigs(configs)
	return t
}

func (a *app) bases(r server.Report, now time.Time) {
	if len(r.Bases) == 0 {
		a.say("\nNo model is loaded.")
		return
	}
	work := map[string]server.ProductReport{}
	for _, p := range r.Products {
		work[p.BaseModel] = p
	}
	t := a.section("Models", table.Row{"model", "parameters", "size", "runs", "samplers", "sampling", "waiting", "kv positions", "last used", "products: forward", "backward", "again", "sampling"},
		2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
	for _, b := range r.Bases {
		kv := ""
		if b.Sampling.Positions > 0 {
			kv = fmt.Sprintf("%d/%d", b.Sampling.Used, b.Sampling.Positions)
		}
		w := work[b.Name]
		t.AppendRow(table.Row{
			printable(b.Name), countText(b.Params), bytesText(b.Bytes), b.Runs, b.Samplers, b.Sampling.Running, b.Sampling.Waiting, kv, agoText(now, b.LastUsed),
			productText(w.Forward), productText(w.Backward), productText(w.Recompute), productText(w.Sample),
		})
	}
	t.Render()
}

func (a *app) sessions(r server.Report, now time.Time) {
	if len(r.Sessions) == 0 {
		a.say("\nNo session is open.")
		return
	}
	t := a.section("Sessions", table.Row{"session", "owner", "SDK", "name", "opened", "heard of", "runs", "samplers", "open", "kept"}, 7, 8, 9, 10)
	for _, s := range r.Sessions {
		if s.LastHeard.IsZero() {
			s.Name = "(keeps the models of --model)"
		}
		t.AppendRow(table.Row{s.ID, printable(s.Owner), printable(s.SDK), printable(s.Name), agoText(now, s.Opened), agoText(now, s.LastHeard), s.Runs, s.Samplers, s.Open, s.Kept})
	}
	t.Render()
}

func (a *app) runs(r server.Report, now time.Time) {
	if len(r.Runs) == 0 {
		a.say("\nNo run is open.")
		return
	}
	t := a.section("Runs", table.Row{"run", "owner", "base model", "rank", "size", "step", "state", "operation", "queued", "saving", "last request"}, 4, 5, 6, 9, 10)
	for _, x := range r.Runs {
		t.AppendRow(table.Row{x.ID, printable(x.Owner), printable(x.BaseModel), x.Rank, bytesText(x.Bytes), x.Step, x.State, x.Operation, x.Queued, x.Background, agoText(now, x.LastRequest)})
	}
	t.Render()
}

func (a *app) samplers(r server.Report) {
	if len(r.Samplers) == 0 {
		a.say("\nNo sampling session is open.")
		return
	}
	t := a.section("Samplers", table.Row{"sampler", "owner", "base model", "weights", "state"})
	for _, x := range r.Samplers {
		t.AppendRow(table.Row{x.ID, printable(x.Owner), printable(x.BaseModel), printable(x.Path), x.State})
	}
	t.Render()
}

// productText is a number of multiply-adds; none is empty.
func productText(n int64) string {
	const peta = 1e15
	switch {
	case n == 0:
		return ""
	case n >= peta:
		return fmt.Sprintf("%.4gP", float64(n)/peta)
	}
	return countText(n)
}

// agoText is how long ago something was; what never was is empty.
func agoText(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return spanText(now.Sub(t)) + " ago"
}

// spanText is a length of time in its two largest units.
func spanText(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}
