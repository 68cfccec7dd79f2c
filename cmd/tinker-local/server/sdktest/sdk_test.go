package sdktest

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"
)

// families are the models of engine/model/testdata, for which torch has computed what is to be expected.
var families = []string{"llama", "mistral", "qwen2", "qwen3-tied", "qwen3-untied", "qwen3moe-fused", "qwen3moe-hub"}

// TestSDK runs every check with every version of the SDK, all versions at once on one server: what one of them does must not be seen by
// another.
func TestSDK(t *testing.T) {
	p := official(t)
	f := newFolders(t)
	goldens := filepath.Join(p.root, "engine", "model", "testdata")
	imported := map[string]string{}
	for _, name := range families {
		copyFolder(t, filepath.Join(goldens, name), filepath.Join(f.models, "goldens", name), ".json", ".safetensors")
		for _, adapter := range []string{"adapter", "adapter_attn", "adapter_start"} {
			path := "tinker://imported-" + name + "/sampler_weights/" + adapter
			f.run(t, "checkpoint", "import", filepath.Join(goldens, name, adapter), path, "--base-model", "goldens/"+name)
			imported[name+"/"+adapter] = path
		}
	}
	paths, err := json.Marshal(imported)
	if err != nil {
		t.Fatal(err)
	}
	s, portable := start(t, f, "--session-idle", "2m"), start(t, newFolders(t), "--device", "cpu:portable")
	for _, version := range versions(t) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			checks := filepath.Join(p.root, "cmd", "tinker-local", "server", "sdktest", "checks")
			c := p.command(ctx, t, version, s, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-W", "ignore", "--tb=short", "--durations=5", "--rootdir", checks, checks)
			c.Env = append(c.Env, "TINKER_LOCAL_PORTABLE_URL="+portable.url, "TINKER_LOCAL_IMPORTED="+string(paths))
			out, err := c.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}
