package tinkerlocal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "tinkerlocal"

// walls says which project packages each project package may import. Arrows point down only; what a
// package may know is decided here, once. docs/architecture.md has the same picture for people.
var walls = map[string][]string{
	// leaves
	"engine/api":  {},
	"engine/disk": {"engine/api"},
	"kernels":     {},

	// parts
	"engine/hf":    {"engine/api", "engine/disk", "kernels"},
	"engine/gguf":  {"engine/api", "kernels"},
	"engine/token": {"engine/api"},
	"engine/chat":  {"engine/api"},
	"engine/lora":  {"engine/api", "kernels"},
	"engine/loss":  {"engine/api"},
	"engine/model": {"kernels", "engine/lora", "engine/hf", "engine/api"},
	"engine/sample": {
		"engine/model", "engine/lora", "engine/api",
	},
	"engine/queue": {"engine/api"},
	"engine/interchange": {
		"engine/gguf", "engine/model", "engine/lora", "engine/hf", "engine/disk", "engine/api", "kernels",
	},

	// devices
	"kernels/ref":                     {"kernels"},
	"kernels/cpu":                     {"kernels"},
	"kernels/cpu/asm":                 {},
	"kernels/cuda":                    {"kernels"},
	"kernels/cuda/internal/cudashim":  {},
	"kernels/cuda/internal/cudrv":     {"kernels/cuda/internal/cudashim"},
	"kernels/cuda/internal/cudacheck": {"kernels/cuda/internal/cudrv"},
	"kernels/kerneltest":              {"kernels", "kernels/ref"},

	// core
	"engine": {
		"engine/queue", "engine/sample", "engine/model", "engine/loss", "engine/lora", "engine/hf",
		"engine/token", "engine/chat", "engine/api", "kernels",
	},
	"store":           {"engine/api", "engine/disk"},
	"store/storetest": {"engine/api"},
	"plugins":         {"engine/loss", "engine/disk", "engine/api"},
	"plugins/losses":  {},
	"plugins/sdk":     {"engine/api"},
	"plugins/sdk/go":  {}, // compiled into guests: it knows nothing of this program

	// composition: the one place that knows every implementation
	"engine/local": {
		"engine", "engine/queue", "engine/sample", "engine/model", "engine/loss", "engine/lora", "engine/hf",
		"engine/token", "engine/chat", "engine/interchange", "engine/disk", "engine/api", "kernels", "kernels/cpu", "kernels/cuda",
		"store", "plugins", "plugins/losses", "plugins/sdk",
	},

	// tests of the engine and of its doors share it
	"engine/enginetest": {"engine/hf", "engine/api"},

	// what programs on top of the engine share
	"engine/sft":        {"engine", "engine/loss", "engine/api"},
	"engine/sft/data":   {"engine/sft", "engine/token", "engine/chat", "engine/api"},
	"engine/sft/record": {"engine/sft", "engine/api"},

	// doors: they translate and hold no logic. engine/api is the vocabulary that all of them speak.
	"cmd/tinker-local": {
		"engine/local", "engine/sft", "engine/sft/data", "engine/sft/record", "engine", "engine/loss", "engine/api",
		"cmd/tinker-local/server", "cmd/tinker-local/server/remote", "cmd/tinker-local/hub",
		"engine/token", "engine/chat", // prompts are text: a door tokenizes
		"engine/disk", // where the server is, in the state directory
	},
	"cmd/tinker-local/hub":            {"engine/api", "engine/disk"}, // downloads: the engine itself never opens a socket
	"cmd/tinker-local/server":         {"engine", "engine/interchange", "engine/api", "cmd/tinker-local/server/wire", "cmd/tinker-local/server/remote"},
	"cmd/tinker-local/server/wire":    {"engine/api"},
	"cmd/tinker-local/server/sdktest": {},             // it starts the program and speaks over TCP
	"cmd/tinker-local/server/remote":  {"engine/api"}, // both ends of a store's connection
	"capi":                            {"capi/handle", "engine/local", "engine", "engine/chat", "engine/api"},
	"capi/handle":                     {},
}

// free are folders whose packages may import any project package, because nothing imports them.
var free = []string{"benchmarks", "examples"}

// cgo are the folders that may import "C". Everything else must build without a C compiler.
var cgo = []string{"capi", "kernels/cuda"}

// unreachable lists what a folder must not reach by any chain of imports. The engine is to be usable
// inside another program without its network, storage or GPU libraries.
var unreachable = []struct {
	folder  string
	except  []string
	targets []string // a target covers the packages below it
	why     string
}{
	{
		folder:  "engine",
		except:  []string{"engine/local"},
		targets: []string{"net/http", "github.com/dgraph-io/badger", "github.com/tetratelabs/wazero", "gorgonia.org/cu"},
		why:     "only engine/local composes the engine with network, storage, WASM and CUDA",
	},
	{
		folder:  "kernels",
		except:  []string{"kernels/cuda"},
		targets: []string{"net", "github.com/dgraph-io/badger", "github.com/tetratelabs/wazero", "gorgonia.org/cu"},
		why:     "a device knows memory and arithmetic only",
	},
	{
		folder:  "engine/model",
		targets: []string{module + "/engine/token", module + "/engine/chat"},
		why:     "engine/model and below know token ids only",
	},
}

// under reports whether path is folder or lies below it.
func under(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func underAny(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return under(path, f) })
}

// checkArrows returns one message per direct import that the walls forbid. imports maps a project
// package (without the module path) to the import paths in its non-test files.
func checkArrows(imports map[string][]string) []string {
	var bad []string
	for _, pkg := range sortedKeys(imports) {
		allowed, known := walls[pkg]
		if !known && !underAny(pkg, free) {
			bad = append(bad, fmt.Sprintf("package %s is not in the table: add it to walls in walls_test.go, with the packages it may import", pkg))
			continue
		}
		for _, path := range imports[pkg] {
			if path == "C" {
				if !underAny(pkg, cgo) {
					bad = append(bad, fmt.Sprintf(`illegal import %s → "C": only %s may use cgo`, pkg, strings.Join(cgo, " and ")))
				}
				continue
			}
			target, ours := strings.CutPrefix(path, module+"/")
			if ours && known && !slices.Contains(allowed, target) {
				bad = append(bad, fmt.Sprintf("illegal arrow %s → %s: %s may import %s", pkg, target, pkg, listOrNothing(allowed)))
			}
		}
	}
	return bad
}

// checkReach returns one message per chain of imports that the walls forbid. graph maps every package,
// ours and others', to its imports, all with full import paths.
func checkReach(graph map[string][]string) []string {
	var bad []string
	for _, rule := range unreachable {
		for _, pkg := range sortedKeys(graph) {
			name, ours := strings.CutPrefix(pkg, module+"/")
			if !ours || !under(name, rule.folder) || underAny(name, rule.except) {
				continue
			}
			for _, target := range rule.targets {
				if chain := shortestChain(graph, pkg, target); chain != nil {
					bad = append(bad, fmt.Sprintf("illegal reach %s: %s", strings.Join(chain, " → "), rule.why))
				}
			}
		}
	}
	return bad
}

// shortestChain returns a shortest chain of imports from one package to a target or below it, or nil.
func shortestChain(graph map[string][]string, from, target string) []string {
	cameFrom := map[string]string{from: ""}
	for wave := []string{from}; len(wave) > 0; {
		var next []string
		for _, pkg := range wave {
			for _, path := range graph[pkg] {
				if _, seen := cameFrom[path]; seen {
					continue
				}
				cameFrom[path] = pkg
				if under(path, target) {
					var chain []string
					for p := path; p != ""; p = cameFrom[p] {
						chain = append(chain, p)
					}
					slices.Reverse(chain)
					return chain
				}
				next = append(next, path)
			}
		}
		wave = next
	}
	return nil
}

// TestWallsArrows reads the source of every package, whatever its build tags: an arrow that only the
// CUDA build or only Windows sees is an arrow as well.
func TestWallsArrows(t *testing.T) {
	imports := projectImports(t)
	if len(imports) == 0 {
		t.Fatal("no project package found")
	}
	for _, message := range checkArrows(imports) {
		t.Error(message)
	}
}

// projectImports maps each project package to the import paths in its non-test files, of all build tags.
func projectImports(t *testing.T) map[string][]string {
	t.Helper()
	imports := map[string][]string{}
	for _, file := range sourceFiles(t, ".go") {
		if strings.HasSuffix(file, "_test.go") {
			continue // tests may use any package, e.g. the oracle or the conformance suite
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			continue
		}
		pkg := filepath.ToSlash(filepath.Dir(file))
		if _, seen := imports[pkg]; !seen {
			imports[pkg] = nil // known even when it imports nothing
		}
		for _, spec := range f.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(imports[pkg], path) {
				imports[pkg] = append(imports[pkg], path)
			}
		}
	}
	return imports
}

// TestWallsReach follows the imports of everything that `go list -deps` names.
func TestWallsReach(t *testing.T) {
	graph := map[string][]string{}
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		graph[p.ImportPath] = p.Imports
	}
	if len(graph) == 0 {
		t.Fatal("go list named no package")
	}
	for _, message := range checkReach(graph) {
		t.Error(message)
	}
}

// TestWallsCatch plants violations: walls that let one of these through protect nothing.
func TestWallsCatch(t *testing.T) {
	arrows := []struct {
		name    string
		imports map[string][]string
		want    string // part of the one message; "" when the arrow is legal
	}{
		{"legal", map[string][]string{"engine/model": {"fmt", "tinkerlocal/kernels", "tinkerlocal/engine/hf"}}, ""},
		{"upwards", map[string][]string{"kernels": {"tinkerlocal/engine/api"}}, "illegal arrow kernels → engine/api: kernels may import nothing"},
		{"sideways", map[string][]string{"engine/loss": {"tinkerlocal/engine/lora"}}, "illegal arrow engine/loss → engine/lora"},
		{"door below", map[string][]string{"engine": {"tinkerlocal/engine/local"}}, "illegal arrow engine → engine/local"},
		{"device in the engine", map[string][]string{"engine": {"tinkerlocal/kernels/cpu"}}, "illegal arrow engine → kernels/cpu"},
		{"text in the model", map[string][]string{"engine/model": {"tinkerlocal/engine/token"}}, "illegal arrow engine/model → engine/token"},
		{"unknown package", map[string][]string{"engine/util": {"fmt"}}, "package engine/util is not in the table"},
		{"cgo", map[string][]string{"kernels/cpu": {"C"}}, `illegal import kernels/cpu → "C"`},
		{"cgo where it belongs", map[string][]string{"kernels/cuda": {"C", "tinkerlocal/kernels"}}, ""},
		{"benchmarks are free", map[string][]string{"benchmarks/step": {"tinkerlocal/engine", "tinkerlocal/kernels/cpu"}}, ""},
		{"benchmarks without cgo", map[string][]string{"benchmarks/step": {"C"}}, `illegal import benchmarks/step → "C"`},
	}
	for _, c := range arrows {
		expectOne(t, c.name, checkArrows(c.imports), c.want)
	}

	reaches := []struct {
		name  string
		graph map[string][]string
		want  string
	}{
		{"direct", map[string][]string{"tinkerlocal/engine": {"net/http"}}, "illegal reach tinkerlocal/engine → net/http: "},
		{"through a library", map[string][]string{
			"tinkerlocal/engine/hf": {"example.org/nice"}, "example.org/nice": {"os", "net/http/httptrace"},
		}, "illegal reach tinkerlocal/engine/hf → example.org/nice → net/http/httptrace"},
		{"composition", map[string][]string{"tinkerlocal/engine/local": {"net/http", "github.com/tetratelabs/wazero"}}, ""},
		{"text below the model", map[string][]string{
			"tinkerlocal/engine/model": {"tinkerlocal/engine/lora"}, "tinkerlocal/engine/lora": {"tinkerlocal/engine/chat"},
		}, "illegal reach tinkerlocal/engine/model → tinkerlocal/engine/lora → tinkerlocal/engine/chat"},
		{"a longer name", map[string][]string{"tinkerlocal/engine": {"net/httpx"}}, ""},
		{"a device on the net", map[string][]string{"tinkerlocal/kernels/cpu": {"net"}}, "illegal reach tinkerlocal/kernels/cpu → net: "},
	}
	for _, c := range reaches {
		expectOne(t, c.name, checkReach(c.graph), c.want)
	}
}

// expectOne fails unless messages is one message that contains want, or none for want "".
func expectOne(t *testing.T, name string, messages []string, want string) {
	t.Helper()
	switch {
	case want == "" && len(messages) > 0:
		t.Errorf("%s: got %q, want no message", name, messages)
	case want != "" && (len(messages) != 1 || !strings.Contains(messages[0], want)):
		t.Errorf("%s: got %q, want one message with %q", name, messages, want)
	}
}

// sourceFiles returns the module's files of one kind, relative to its root. Nested modules, testdata, what is built and
// folders that the Go tool ignores are left out.
func sourceFiles(t *testing.T, suffix string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if path == "." {
				return nil
			}
			if path == "build" || name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(path, suffix) {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func listOrNothing(names []string) string {
	if len(names) == 0 {
		return "nothing of the project"
	}
	return strings.Join(names, ", ")
}
