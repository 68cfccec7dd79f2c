// Command server is the Go half of benchmarks/server.py. Each way to start it is a process of its own, so that processor time can be told apart:
//
//	server serve            the real server over an engine whose device has next to nothing to do
//	server null             a server that answers at once and does nothing: the ceiling of whoever asks it
//	server engine KIND      the same work through the Go API, without a server: seconds, processor time and answers
//	server load URL KIND    64 clients that ask a server, over HTTP, in the words of the SDK
//
// The first two print their address, and then their processor time in seconds for every line of standard input. KIND is protobuf or json (a
// forward_backward of one datum), step (an optim_step) or sample (one token).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"strconv"
	"sync"
	"time"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/enginetest"
	"tinkerlocal/kernels/cpu"
)

// clients is how many ask at one time.
const clients = 64

const model = "bench/least"

// least is a model whose arithmetic takes microseconds.
var least = enginetest.Shape{Layers: 1, Hidden: 4, Heads: 1, KVHeads: 1, HeadDim: 4, FFN: 4, Vocab: 64, Context: 64, Tied: true, Seed: 1}

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "serve":
		err = serve()
	case len(args) == 1 && args[0] == "null":
		err = listen(nullServer())
	case len(args) == 3 && args[0] == "engine":
		err = direct(args[1], args[2])
	case len(args) == 4 && args[0] == "load":
		err = load(args[1], args[2], args[3])
	default:
		err = fmt.Errorf("wanted serve, null, engine KIND SECONDS, or load URL KIND SECONDS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func open() (*engine.Engine, error) {
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	return engine.Open(context.Background(), engine.Options{Device: dev, Models: enginetest.Models{model: least}})
}

func serve() error {
	if name := os.Getenv("PROFILE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	e, err := open()
	if err != nil {
		return err
	}
	defer e.Close()
	s := server.New(server.Options{Engine: e, Describe: func(string) (server.ModelFacts, error) { return server.ModelFacts{Context: least.Context}, nil }})
	defer s.Close()
	s.Ready()
	return listen(s.Web())
}

// listen serves until standard input ends.
func listen(web *http.Server) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go web.Serve(l)
	fmt.Println("http://" + l.Addr().String())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(processorSeconds())
	}
	return web.Close()
}

// measure has clients do something again and again for a while, after a warm-up, and prints what came of it.
func measure(seconds string, newClient func(i int) (func() error, error)) error {
	duration, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	doing := make([]func() error, clients)
	for i := range doing {
		if doing[i], err = newClient(i); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var took []float64
	run := func(d time.Duration, keep bool) error {
		end := time.Now().Add(d)
		errs := make(chan error, clients)
		for _, do := range doing {
			go func() {
				var mine []float64
				for time.Now().Before(end) {
					began := time.Now()
					if err := do(); err != nil {
						errs <- err
						return
					}
					mine = append(mine, time.Since(began).Seconds())
				}
				mu.Lock()
				defer mu.Unlock()
				if keep {
					took = append(took, mine...)
				}
				errs <- nil
			}()
		}
		var first error
		for range clients {
			if err := <-errs; err != nil && first == nil {
				first = err
			}
		}
		return first
	}
	if err := run(time.Duration(duration/4*float64(time.Second)), false); err != nil {
		return err
	}
	before, began := processorSeconds(), time.Now()
	if err := run(time.Duration(duration*float64(time.Second)), true); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"seconds": time.Since(began).Seconds(), "processor": processorSeconds() - before, "took": took,
	})
}

// direct does the work through the Go API.
func direct(kind, seconds string) error {
	e, err := open()
	if err != nil {
		return err
	}
	defer e.Close()
	ctx := context.Background()
	return measure(seconds, func(i int) (func() error, error) {
		s := e.NewSession()
		if kind == "sample" {
			p, err := wait(ctx)(s.NewSampler(model))
			if err != nil {
				return nil, err
			}
			params := api.DefaultSampling()
			params.MaxTokens = 1
			return func() error {
				_, err := wait2(ctx, p, api.SampleRequest{Prompt: api.FromInts(prompt()), Params: params, NumSamples: 1})
				return err
			}, nil
		}
		seed := int64(i)
		f, err := s.NewRun(api.CreateModelRequest{BaseModel: model, Lora: api.LoraConfig{Rank: 1, Seed: &seed, TrainAttn: true}})
		if err != nil {
			return nil, err
		}
		r, err := f.Wait(ctx)
		if err != nil {
			return nil, err
		}
		if kind == "step" {
			return func() error {
				f, err := r.OptimStep(api.DefaultAdam())
				if err == nil {
					_, err = f.Wait(ctx)
				}
				return err
			}, nil
		}
		in := api.ForwardBackwardInput{Data: []api.Datum{datum()}, LossFn: "cross_entropy"}
		return func() error {
			f, err := r.ForwardBackward(in)
			if err == nil {
				_, err = f.Wait(ctx)
			}
			return err
		}, nil
	})
}

func wait(ctx context.Context) func(*engine.Future[*engine.Sampler], error) (*engine.Sampler, error) {
	return func(f *engine.Future[*engine.Sampler], err error) (*engine.Sampler, error) {
		if err != nil {
			return nil, err
		}
		return f.Wait(ctx)
	}
}

func wait2(ctx context.Context, p *engine.Sampler, r api.SampleRequest) (api.SampleOutput, error) {
	f, err := p.Sample(ctx, r)
	if err != nil {
		return api.SampleOutput{}, err
	}
	return f.Wait(ctx)
}

// datumTokens is how many positions the one datum has.
const datumTokens = 16

func prompt() []int32 {
	out := make([]int32, datumTokens)
	for i := range out {
		out[i] = int32(i*7) % int32(least.Vocab)
	}
	return out
}

func datum() api.Datum {
	targets, weights := make([]int64, datumTokens), make([]float32, datumTokens)
	for i, id := range prompt() {
		targets[i], weights[i] = int64(id), 1
	}
	return api.Datum{ModelInput: api.FromInts(prompt()), LossInputs: map[string]api.TensorData{"target_tokens": api.Ints(targets), "weights": api.Floats(weights)}}
}
