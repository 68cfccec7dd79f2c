//go:build cuda && linux && cgo

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/kernels/cuda/internal/cudashim"
)

// The driver is loaded once in a process, so each test runs this binary again as the program itself.
const asProgram = "CUDACHECK_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program runs cudacheck against a driver library and returns its report and exit code.
func program(t *testing.T, library string, env ...string) (*report, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, asProgram+"=1", cudashim.LibraryVariable+"="+library)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := &report{}
	if err := json.Unmarshal(out, r); err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	return r, cmd.ProcessState.ExitCode()
}

// fakeDriver builds testdata/fake.c with a stub for every other function of the driver, but for those in without.
func fakeDriver(t *testing.T, without ...string) string {
	t.Helper()
	compiler := cmp.Or(os.Getenv("CC"), "gcc") // as cgo chooses
	table, err := os.ReadFile("../cudashim/trampolines_gen.c")
	if err != nil {
		t.Fatal(err)
	}
	var stubs bytes.Buffer
	for _, m := range regexp.MustCompile(`(?m)^TRAMPOLINE\(\d+, (\w+)\)$`).FindAllSubmatch(table, -1) {
		if name := string(m[1]); !slices.Contains(without, name) {
			fmt.Fprintf(&stubs, "__attribute__((weak)) int %s(void) { return 801; }\n", name)
		}
	}
	if stubs.Len() == 0 {
		t.Fatal("no trampolines found")
	}
	dir := t.TempDir()
	source, library := filepath.Join(dir, "stubs.c"), filepath.Join(dir, "libcuda.so.1")
	if err := os.WriteFile(source, stubs.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I../cudashim/include", "-o", library,
		"testdata/fake.c", source, "-lm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return library
}

// TestNoDriver: the program starts without a driver and says why there is none.
func TestNoDriver(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "libcuda.so.1")
	r, code := program(t, missing)
	if code != 1 || r.Driver != nil || !strings.HasPrefix(r.Stopped, "no CUDA driver: ") || !strings.Contains(r.Stopped, missing) {
		t.Errorf("got exit code %d, %q, driver %v; want 1, no driver and the path", code, r.Stopped, r.Driver)
	}
	plain := filepath.Join(t.TempDir(), "plain.so")
	if err := os.WriteFile(plain, []byte("no library"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, code = program(t, plain); code != 1 || !strings.HasPrefix(r.Stopped, "no CUDA driver: ") {
		t.Errorf("a file that is no library: got exit code %d, %q", code, r.Stopped)
	}
}

// TestRefusals: what cuInit returns where a driver is there and cannot be used.
func TestRefusals(t *testing.T) {
	library := fakeDriver(t)
	for _, code := range []string{"34", "100", "803", "999"} {
		r, exit := program(t, library, "FAKE_INIT="+code)
		want := "the CUDA driver cannot be used (" + code + "): cuInit of " + library + " returned " + code
		if exit != 1 || !strings.HasPrefix(r.Stopped, want) || !strings.Contains(r.Stopped, "said by the fake") {
			t.Errorf("cuInit %s: got exit code %d, %q, want 1, %q and the driver's text", code, exit, r.Stopped, want)
		}
	}
}

// TestMissing: functions that a driver lacks are named, and the rest of the program works.
func TestMissing(t *testing.T) {
	r, exit := program(t, fakeDriver(t, "cuSurfRefSetArray", "cuTensorMapEncodeTiled"))
	want := []string{"cuSurfRefSetArray", "cuTensorMapEncodeTiled"}
	slices.Sort(r.Driver.Missing)
	if exit != 1 || r.Failed != 1 || !slices.Equal(r.Driver.Missing, want) {
		t.Errorf("got exit code %d, %d failed, missing %v; want 1, 1, %v", exit, r.Failed, r.Driver.Missing, want)
	}
}

// TestWhole: every check passes against the fake, and the driver sees the calls in the order that it demands.
func TestWhole(t *testing.T) {
	log := filepath.Join(t.TempDir(), "calls")
	r, exit := program(t, fakeDriver(t), "FAKE_LOG="+log)
	if exit != 0 || r.Stopped != "" {
		t.Errorf("got exit code %d, stopped %q, want 0", exit, r.Stopped)
	}
	for _, c := range r.Checks {
		if !c.Passed {
			t.Errorf("%s: %s", c.Name, c.Text)
		}
	}
	if len(r.Checks) < 12 || len(r.Measures) < 14 {
		t.Errorf("got %d checks and %d measures, want at least 12 and 14", len(r.Checks), len(r.Measures))
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	calls := strings.Fields(string(text))
	if n := strings.Count(string(text), "cuInit\n"); n != 1 || calls[0] != "cuInit" {
		t.Errorf("cuInit was called %d times and first came %s, want once and first", n, calls[0])
	}
	at := 0
	for _, want := range []string{
		"cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate",
		"cuModuleLoadDataEx", "cuModuleGetFunction", "cuMemcpyHtoD_v2", "cuLaunchKernel", "cuMemcpyDtoH_v2", "cuFuncSetAttribute",
		"cuStreamBeginCapture_v2", "cuLaunchKernel", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy", "cuGraphUpload",
		"cuLaunchKernel", "cuGraphLaunch", "cuGraphExecDestroy", "cuMemHostAlloc", "cuMemFreeHost", "cuMemsetD32_v2", "cuMemcpyDtoDAsync_v2",
	} {
		found := slices.Index(calls[at:], want)
		if found < 0 {
			t.Fatalf("after %v: no %s in %v", calls[:at], want, calls[at:])
		}
		at += found + 1
	}
}

// TestNeeded: the binary asks the loader for none of CUDA's libraries, or it would not start without them.
func TestNeeded(t *testing.T) {
	readelf, err := exec.LookPath("readelf")
	if err != nil {
		t.Skip("readelf is not there")
	}
	out, err := exec.Command(readelf, "-d", os.Args[0]).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "libc.so") {
		t.Errorf("no libc among the needed libraries: the test reads the wrong thing\n%s", out)
	}
	if bad := regexp.MustCompile(`lib(cuda|cublas|cudart|nvrtc)\S*`).Find(out); bad != nil {
		t.Errorf("the binary needs %s", bad)
	}
}
