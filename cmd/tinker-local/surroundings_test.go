package main

import (
	"os"
	"path/filepath"
	"testing"
)

// asProgram is the variable that makes the test's binary the program itself, for tests that need several processes.
const asProgram = "TINKER_LOCAL_TEST_AS_PROGRAM"

// TestMain keeps the tests away from the models, the settings and the hub of the user who runs them.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main() // exits
	}
	dir, err := os.MkdirTemp("", "tinker-local-test-*")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		os.Unsetenv(name)
	}
	os.Setenv("HF_ENDPOINT", "http://127.0.0.1:1") // nothing listens there
	os.Setenv("HF_HOME", filepath.Join(dir, "huggingface"))
	os.Setenv("TINKER_LOCAL_MODELS", filepath.Join(dir, "models"))
	os.Setenv("TINKER_LOCAL_STATE", filepath.Join(dir, "state"))
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}
