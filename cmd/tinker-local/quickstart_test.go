package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestQuickstart: the base fails the task and the fine-tuned adapter solves it. The time is reported by
// the run itself; no test depends on it. With TINKER_SOAK=1 seeds 1 to 4 are run.
func TestQuickstart(t *testing.T) {
	seeds := 1
	if os.Getenv("TINKER_SOAK") != "" {
		seeds = 4
	}
	for seed := 1; seed <= seeds; seed++ {
		t.Run("seed "+strconv.Itoa(seed), func(t *testing.T) {
			code, stdout, stderr := cli(t.Context(), "quickstart", "--json", "--seed", strconv.Itoa(seed), "--out", filepath.Join(t.TempDir(), "a"))
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			var r quickResult
			if err := json.Unmarshal([]byte(stdout), &r); err != nil {
				t.Fatalf("--json printed %q: %v", stdout, err)
			}
			t.Logf("%+v", r)
			if r.Heldout < 200 || r.BaseExactMatch > 0.10 || r.TunedExactMatch < 0.95 || r.TrainSeconds <= 0 || r.TokensPerSecond <= 0 {
				t.Errorf("%+v: wanted at least 200 held-out phrases, base at most 0.10, tuned at least 0.95", r)
			}
		})
	}
}
