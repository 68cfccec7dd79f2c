package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tinkerlocal/cmd/tinker-local/hub"
)

// tinyHub serves the embedded model as Org/Tiny. slow, when not nil, is called before the weights are sent.
func tinyHub(t *testing.T, slow func(http.ResponseWriter)) *httptest.Server {
	const commit = "0123456789abcdef0123456789abcdef01234567"
	dir := filepath.Join("..", "..", "engine", "local", "tiny")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/models/Org/Tiny/revision/main" {
			var files []map[string]any
			for _, name := range []string{"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"} {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Error(err)
				}
				x := map[string]any{"rfilename": name, "size": len(b), "blobId": fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(b), b)))}
				if name == "model.safetensors" {
					x["lfs"] = map[string]any{"sha256": fmt.Sprintf("%x", sha256.Sum256(b)), "size": len(b)}
				}
				files = append(files, x)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"sha": commit, "siblings": files})
			return
		}
		name, ok := strings.CutPrefix(r.URL.Path, "/Org/Tiny/resolve/"+commit+"/")
		b, err := os.ReadFile(filepath.Join(dir, name))
		if !ok || err != nil {
			w.WriteHeader(http.StatusUnauthorized) // as the hub answers for what does not exist
			return
		}
		if name == "model.safetensors" && slow != nil {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b[:len(b)/2])
			slow(w)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha1.Sum(b)))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	t.Cleanup(s.Close)
	return s
}

// TestPullAndSample: a pulled model is found by its name.
func TestPullAndSample(t *testing.T) {
	s, models := tinyHub(t, nil), filepath.Join(t.TempDir(), "models")
	code, stdout, stderr := cli(t.Context(), "model", "pull", "Org/Tiny", "--models", models, "--endpoint", s.URL)
	if code != exitOK || stderr != "" || !strings.Contains(stdout, "Org/Tiny is in "+filepath.Join(models, "Org", "Tiny")+": 5 files") {
		t.Fatalf("exit code %d, %q, %q", code, stdout, stderr)
	}
	code, stdout, stderr = cli(t.Context(), "model", "pull", "Org/Tiny", "--models", models, "--endpoint", s.URL, "--json")
	var res hub.Result
	if err := json.Unmarshal([]byte(stdout), &res); err != nil || code != exitOK || res.Files != 5 || res.Downloaded != 0 {
		t.Errorf("again: exit code %d, %q, %q", code, stdout, stderr)
	}
	sample := []string{"sample", "--prompt", "the ", "--temperature", "0", "--max-tokens", "8", "--models", models, "--model"}
	_, want, _ := cli(t.Context(), append(sample, tiny)...)
	code, got, stderr := cli(t.Context(), append(sample, "Org/Tiny")...)
	if code != exitOK || got != want {
		t.Errorf("sampled %q, wanted %q; exit code %d, %q", got, want, code, stderr)
	}
}

// TestPullFailures: what cannot work says why, with the exit code of its kind.
func TestPullFailures(t *testing.T) {
	s := tinyHub(t, nil)
	t.Setenv("HF_ENDPOINT", s.URL)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"nonsense"}, exitUsage, `unknown command "nonsense" for "tinker-local model"`},
		{[]string{"pull"}, exitUsage, "accepts 1 arg(s), received 0"},
		{[]string{"pull", "Org/Tiny", "--parallel", "0"}, exitUsage, "--parallel is 0, wanted 1..16"},
		{[]string{"pull", "Org/Tiny", "--models", ""}, exitUsage, "--models is empty"},
		{[]string{"pull", tiny}, exitFailed, "is inside this program"},
		{[]string{"pull", "../Tiny"}, exitFailed, "wanted ORG/NAME"},
		{[]string{"pull", "Org/Other"}, exitFailed, "no model Org/Other, or it is private or gated; check the name, or give a token in $HF_TOKEN"},
		{[]string{"pull", "Org/Tiny", "--endpoint", "ftp://x"}, exitFailed, `endpoint is "ftp://x"`},
		{[]string{"pull", "Org/Tiny", "--include", "["}, exitFailed, `pattern "[" is malformed`},
	} {
		code, _, stderr := cli(t.Context(), append([]string{"model"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%v: exit code %d, %q; wanted %d and %q", c.args, code, stderr, c.code, c.want)
		}
	}
	t.Setenv("HF_HUB_OFFLINE", "1")
	if code, _, stderr := cli(t.Context(), "model", "pull", "Org/Tiny"); code != exitFailed || !strings.Contains(stderr, "offline mode, HF_HUB_OFFLINE=1 is set") {
		t.Errorf("offline: exit code %d, %q", code, stderr)
	}
}

// TestPullInterrupted: ctrl-C answers as shells expect, and the same command goes on from there.
func TestPullInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	models := t.TempDir()
	slow := tinyHub(t, func(w http.ResponseWriter) {
		_ = http.NewResponseController(w).Flush()
		cancel()
		time.Sleep(50 * time.Millisecond)
	})
	code, _, stderr := cli(ctx, "model", "pull", "Org/Tiny", "--models", models, "--endpoint", slow.URL)
	if code != exitInterrupted || !strings.Contains(stderr, "what is there is kept, and the same command goes on from it") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(models, "Org", "Tiny")); !os.IsNotExist(err) {
		t.Error("half a model is visible")
	}
	if code, stdout, stderr := cli(t.Context(), "model", "pull", "Org/Tiny", "--models", models, "--endpoint", tinyHub(t, nil).URL); code != exitOK {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

// TestPullBars: a line for each file and one for the whole, none longer than a narrow terminal.
func TestPullBars(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	b := newPullBars(&out, func() time.Time { return now })
	b.event(hub.Event{Kind: hub.Advanced, File: "a"})
	if out.Len() != 0 {
		t.Fatalf("drawn without a terminal: %q", out.String())
	}
	b.event(hub.Event{Kind: hub.Retrying, File: "a", Err: errors.New("oops"), Wait: 1500 * time.Millisecond})
	if out.String() != "oops; again in 1.5s\n" {
		t.Errorf("said %q", out.String())
	}
	out.Reset()
	b = newPullBars(&out, b.now)
	b.draws, b.perFile = true, true
	event := func(e hub.Event) string {
		now = now.Add(time.Second)
		out.Reset()
		b.event(e)
		return regexp.MustCompile(`\x1b\[\w*|\r`).ReplaceAllString(out.String(), "")
	}
	long := "model-00001-of-00002-" + strings.Repeat("x", 100) + ".safetensors"
	event(hub.Event{Kind: hub.Planned, Size: 4 << 20})
	event(hub.Event{Kind: hub.Advanced, File: "config.json", Done: 0, Size: 2 << 20})
	event(hub.Event{Kind: hub.Advanced, File: long, Done: 0, Size: 2 << 20})
	lines := strings.Split(event(hub.Event{Kind: hub.Advanced, File: "config.json", Done: 1 << 20, Size: 2 << 20}), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "config.json                   50% [==========          ] 2.0 MiB") ||
		!strings.Contains(lines[1], "….") && !strings.Contains(lines[1], "…x") || !strings.Contains(lines[2], "25% [=====               ] 256.0 KiB/s 12s") {
		t.Errorf("lines %q", lines)
	}
	for _, l := range lines {
		if len([]rune(l)) > 79 {
			t.Errorf("line %q is too long", l)
		}
	}
	lines = strings.Split(event(hub.Event{Kind: hub.Completed, File: "config.json", Done: 2 << 20, Size: 2 << 20}), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], "50%") {
		t.Errorf("lines %q", lines)
	}
	out.Reset()
	b.end()
	if out.String() != "\x1b[1A\r\x1b[J" || b.lines != 0 {
		t.Errorf("the lines are not taken away: %q", out.String())
	}
}
