package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// serveFlags are the settings of serve.
type serveFlags struct {
	listen, keyFile, publicURL string
	tlsCert, tlsKey            string
	models                     []string
	sessionIdle, drain         time.Duration
	uploads                    bool
	logLevel, logFormat        string
}

// answerTime is for the last answers of a server that is stopped.
const answerTime = 5 * time.Second

func serveCommand(a *app) *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve the official Tinker SDK and CLI on this machine",
		Long: "serve answers the official Tinker SDK and CLI: set TINKER_BASE_URL to its address and TINKER_API_KEY to a key, and scripts run\n" +
			"unchanged. It stays in the foreground; SIGINT or SIGTERM ends it in good order. Base models are loaded when they are first used and\n" +
			"make room when others need it.\n\n" +
			"It listens on this machine alone unless --listen says otherwise; then a key file is needed. A key file has lines of an owner and a\n" +
			"key, which begins with tml- ; what is private to one owner stays so. Without one, every key that begins with tml- is taken.\n\n" +
			"Logs, and a line when it is ready, go to standard error; with --json, one JSON object with the url goes to standard output then.\n" +
			"While it runs, the commands that need the state directory (--state) work through it; ps shows what it does.",
		Example: "  tinker-local serve\n" +
			"  tinker-local serve --listen 127.0.0.1:8000 --models ~/models --model Qwen/Qwen3-8B\n" +
			"  tinker-local serve --listen 0.0.0.0:8443 --key-file keys --tls-cert cert.pem --tls-key key.pem",
		RunE: func(c *cobra.Command, _ []string) error {
			if a.state == "" && !c.Flags().Changed("state") {
				return api.Errorf(api.BadRequest, "no state directory is named and no home folder is known: set $%s, or give --state DIR; --state \"\" keeps checkpoints in memory", local.StateVariable)
			}
			return a.serve(c.Context(), f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8000", "address and port; port 0 takes a free one")
	fl.StringVar(&f.keyFile, "key-file", "", "file with lines of an owner and a key")
	fl.StringArrayVar(&f.models, "model", nil, "load this base model before the server is ready, and keep it; a name, or the path of a folder; may be repeated")
	fl.StringVar(&f.publicURL, "public-url", "", "where clients reach the server, for download links; as their requests say when not given")
	fl.StringVar(&f.tlsCert, "tls-cert", "", "certificate (PEM); with --tls-key, HTTPS is served")
	fl.StringVar(&f.tlsKey, "tls-key", "", "private key of the certificate (PEM)")
	fl.DurationVar(&f.sessionIdle, "session-idle", time.Hour, "close a session with its runs when its client has been silent for so long")
	fl.DurationVar(&f.drain, "drain", 30*time.Second, "how long work under way may go on when the server is stopped")
	fl.BoolVar(&f.uploads, "allow-plugin-upload", false, "let clients add loss modules: PUT /local/v1/plugins/NAME")
	f.logLevel, f.logFormat = "info", "text"
	fl.Var(choiceFlag{&f.logLevel, []string{"debug", "info", "warn", "error"}}, "log-level", "what is logged on standard error: debug (every request), info, warn or error")
	fl.Var(choiceFlag{&f.logFormat, []string{"text", "json"}}, "log-format", "text or json")
	return c
}

// serve is the server's life. What can be refused is refused before a model is loaded.
func (a *app) serve(ctx context.Context, f serveFlags) (err error) {
	// A second signal ends the program at once.
	defer context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt, syscall.SIGTERM) })()
	if err := f.check(); err != nil {
		return err
	}
	keys, err := f.keys()
	if err != nil {
		return err
	}
	certificate, err := f.certificate()
	if err != nil {
		return err
	}
	a.opt.Paths = append([]string{}, f.models...) // clients name models; a path is the operator's to give
	log := f.log(a)
	state, err := a.ownState(ctx, log)
	if err != nil {
		return err
	}
	limits := server.Limits{SessionIdle: f.sessionIdle}.WithDefaults()
	listener, here, err := a.listen(f, certificate, limits.Connections)
	if err != nil {
		return errors.Join(err, closeState(state))
	}
	defer listener.Close()
	o := a.opt
	o.State, o.Checkpoints, o.Log = a.state, state, log
	e, err := local.Open(ctx, o) // which closes state with the engine
	if err != nil {
		here.remove()
		return err
	}
	defer func() {
		here.remove() // while the directory is still this process's
		err = errors.Join(err, e.Close())
	}()
	s := server.New(server.Options{
		Engine: e, Describe: a.describer(), Keys: keys, Admin: here.Key, Secret: here.secret, Hosts: f.hosts(listener.Addr()), PublicURL: f.publicURL,
		AddPlugin: f.uploader(a, log), Version: here.Version, Limits: limits, Log: log,
	})
	web := s.Web()
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	err = preload(ctx, e, f.models)
	if err == nil {
		s.Ready()
		err = a.sayReady(here, keys == nil)
	}
	if err == nil {
		select {
		case err = <-served:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		err = nil // it was asked to end, be it while it loaded
		log.Info("stopping", "work_under_way_may_take", f.drain)
		wait, cancel := context.WithTimeout(context.Background(), f.drain)
		defer cancel()
		if s.Drain(wait) != nil {
			log.Warn("work under way is dropped: it took too long", "limit", f.drain)
		}
	}
	s.Close()
	last, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	return errors.Join(err, web.Shutdown(last), web.Close())
}

// ownState opens the state directory for the server; nil: checkpoints are kept in memory.
func (a *app) ownState(ctx context.Context, log *slog.Logger) (local.State, error) {
	if a.state == "" {
		log.Warn("no state directory: checkpoints end with the server, and no command works beside it")
		return nil, nil
	}
	s, err := tryState(ctx, lockPatience, func() (local.State, error) { return local.OpenState(a.state, true, log) })
	if err == nil || api.CodeOf(err) != api.Busy {
		return s, err
	}
	if at, _ := a.served(); at != nil {
		return nil, api.Errorf(api.Busy, "state directory %s is served already: by process %d at %s; stop that server, or choose another directory with --state", a.state, at.PID, at.URL)
	}
	return nil, err
}

func closeState(s local.State) error {
	if s == nil {
		return nil
	}
	return s.Close()
}

// preload loads base models and keeps them.
func preload(ctx context.Context, e *engine.Engine, names []string) error {
	session := e.NewSession()
	for _, name := range names {
		f, err := session.NewSampler(name)
		if err == nil {
			_, err = f.Wait(ctx)
		}
		if err != nil {
			return fmt.Errorf("--model %s: %w", name, err)
		}
	}
	return nil
}

// serveReport is what serve prints with --json when it is ready.
type serveReport struct {
	URL     string `json:"url"`
	PID     int    `json:"pid"`
	State   string `json:"state"`
	Version string `json:"version"`
	AnyKey  bool   `json:"any_key"` // every key that begins with tml- is taken
}

func (a *app) sayReady(here *serving, anyKey bool) error {
	fmt.Fprintf(a.err, "tinker-local: ready on %s\n", here.URL)
	key := "a key of the key file"
	if anyKey {
		key = "tml-local"
	}
	fmt.Fprintf(a.err, "For the official SDK and CLI: export TINKER_BASE_URL=%s TINKER_API_KEY=%s\n", here.URL, key)
	if !a.json {
		return nil
	}
	r := serveReport{here.URL, here.PID, a.state, here.Version, anyKey}
	if abs, err := filepath.Abs(a.state); err == nil && a.state != "" {
		r.State = abs
	}
	return a.printJSON(r)
}

// keys reads the key file. Without one only this machine is served.
func (f serveFlags) keys() (*server.Keys, error) {
	if f.keyFile == "" {
		if !loopback(f.listen) {
			return nil, api.Errorf(api.BadRequest, "--listen %s can be reached from other machines: a --key-file is needed", f.listen)
		}
		return nil, nil
	}
	file, err := os.Open(f.keyFile)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "--key-file: %w", err)
	}
	defer file.Close()
	if st, err := file.Stat(); err == nil && runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return nil, api.Errorf(api.BadRequest, "--key-file %s can be read by others (mode %04o), wanted 0600", f.keyFile, st.Mode().Perm())
	}
	keys, err := server.ReadKeys(file)
	if err != nil {
		return nil, fmt.Errorf("--key-file %s: %w", f.keyFile, err)
	}
	return keys, nil
}

func (f serveFlags) log(a *app) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(f.logLevel)) // one of the choices
	o := &slog.HandlerOptions{Level: level}
	if f.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.err, o))
	}
	return slog.New(slog.NewTextHandler(a.err, o))
}

// uploader checks and keeps modules that clients send, where that is allowed.
func (f serveFlags) uploader(a *app, log *slog.Logger) func(context.Context, string, []byte) (any, error) {
	if !f.uploads {
		return nil
	}
	return func(ctx context.Context, name string, module []byte) (_ any, err error) {
		file, err := os.CreateTemp("", "tinker-local-*.wasm")
		if err != nil {
			return nil, err
		}
		defer os.Remove(file.Name())
		_, err = file.Write(module)
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, err
		}
		p, err := local.OpenPlugins(ctx, a.state, true, log)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		return p.AddFile(ctx, file.Name(), name)
	}
}

// describer tells what clients want to know of base models. The embedded one's tokenizer is unpacked for them.
func (a *app) describer() func(string) (server.ModelFacts, error) {
	models := a.models()
	return func(name string) (server.ModelFacts, error) {
		i, err := models.Describe(name)
		if err == nil && i.Problem != "" {
			err = api.Errorf(api.Unsupported, "model %s: %s", name, i.Problem)
		}
		if err != nil {
			return server.ModelFacts{}, err
		}
		dir, err := models.TokenizerDir(name, a.state)
		return server.ModelFacts{Arch: i.Family, Context: i.Context, Tokenizer: dir}, err
	}
}
