//go:build cuda && linux && cgo

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// report is what the program found, written as JSON at the end, also when that end is the time limit.
type report struct {
	Driver   *driverInfo `json:"driver,omitempty"`
	Device   *deviceInfo `json:"device,omitempty"`
	Checks   []check     `json:"checks"`
	Measures []measure   `json:"measures"`
	Failed   int         `json:"failed_checks"`
	Stopped  string      `json:"stopped,omitempty"` // why the program ended early
	Seconds  float64     `json:"seconds"`

	mu      sync.Mutex
	file    string
	started time.Time
}

type driverInfo struct {
	Library     string   `json:"library"`
	CUDAVersion int      `json:"cuda_version"` // 13000 for 13.0
	Resolved    int      `json:"symbols_resolved"`
	Missing     []string `json:"symbols_missing"`
}

type deviceInfo struct {
	Count       int            `json:"count"`
	Name        string         `json:"name"`
	Capability  string         `json:"capability"`
	MemoryBytes int64          `json:"memory_bytes"`
	FreeBytes   int64          `json:"free_bytes"`
	Attributes  map[string]int `json:"attributes"`
}

type check struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	Text   string `json:"text"`
}

// measure is the median of a number of rounds, with their extremes.
type measure struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
	Rounds int     `json:"rounds"`
}

// check records an outcome: err nil is a pass, and text says what was seen.
func (r *report) check(name string, err error, text string, args ...any) {
	c := check{Name: name, Passed: err == nil, Text: fmt.Sprintf(text, args...)}
	verdict := "PASS"
	if err != nil {
		c.Text, verdict = err.Error(), "FAIL"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !c.Passed {
		r.Failed++
	}
	r.Checks = append(r.Checks, c)
	if r.file != "" {
		fmt.Printf("%s %-28s %s\n", verdict, c.Name, c.Text)
	}
}

func (r *report) measure(m measure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Measures = append(r.Measures, m)
	if r.file != "" {
		fmt.Printf("     %-44s %12.3f %-5s (%.3f to %.3f, %d rounds)\n", m.Name, m.Median, m.Unit, m.Least, m.Most, m.Rounds)
	}
}

// end writes the report and ends the program. It holds the lock for good: nothing is added any more.
func (r *report) end(stopped string) {
	r.mu.Lock()
	r.Stopped = stopped
	r.Seconds = time.Since(r.started).Seconds()
	out := os.Stdout
	if r.file != "" {
		f, err := os.Create(r.file)
		if err != nil {
			fmt.Fprintln(os.Stderr, "cudacheck:", err)
			os.Exit(2)
		}
		out = f
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "cudacheck:", err)
		os.Exit(2)
	}
	if stopped != "" {
		fmt.Fprintln(os.Stderr, "cudacheck:", stopped)
	}
	if stopped != "" || r.Failed > 0 {
		os.Exit(1)
	}
	os.Exit(0)
}
