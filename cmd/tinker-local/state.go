package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/server/remote"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// isCheckpoint tells a checkpoint's path from a folder's.
func isCheckpoint(adapter string) bool { return strings.HasPrefix(adapter, "tinker://") }

// withState calls do with the store in the state directory. One that is not there is made only if make is set: otherwise it is empty.
func (a *app) withState(ctx context.Context, make bool, do func(s local.State) error) error {
	s, err := a.openState(ctx, make)
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

// lockPatience is how long a command waits for a state directory that another process has open: other commands are done with it
// in a moment, and a server that begins or ends has it for a moment without being there.
const (
	lockPatience = 2 * time.Second
	lockAgain    = 50 * time.Millisecond
)

// openState opens the store in the state directory, or the one in the server that has it open.
func (a *app) openState(ctx context.Context, make bool) (local.State, error) {
	return tryState(ctx, lockPatience, func() (local.State, error) { return a.stateNow(ctx, make) })
}

// stateNow is openState without patience.
func (a *app) stateNow(ctx context.Context, make bool) (local.State, error) {
	s, err := local.OpenState(a.state, make, nil)
	if err == nil || api.CodeOf(err) != api.Busy {
		return s, err
	}
	there, found := a.openServed(ctx)
	if there == nil && found == nil {
		return nil, err
	}
	return there, found
}

// openServed opens the store of the server that has the state directory open; nil: none has.
func (a *app) openServed(ctx context.Context) (local.State, error) {
	at, err := a.served()
	if at == nil {
		return nil, err
	}
	s, err := remote.Open(ctx, at.Address)
	if err != nil {
		return nil, at.failed(a.state, err)
	}
	return s, nil
}

// openStateAgain is openState for a command whose server has gone, or is about to. A server that is started anew is to find the
// directory free.
func (a *app) openStateAgain(ctx context.Context) (api.Store, error) {
	s, err := tryState(ctx, restartPatience, func() (local.State, error) {
		s, err := a.openServed(ctx)
		if s == nil && err == nil {
			err = errNoServer
		}
		return s, err
	})
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	return tryState(ctx, drainPatience, func() (local.State, error) { return a.stateNow(ctx, true) })
}

// errNoServer is the error of a state directory that no server has open.
var errNoServer = api.Errorf(api.Busy, "no server has the state directory open")

// tryState calls open until it succeeds, fails for another reason than that the directory is somebody else's, or patience ends.
func tryState(ctx context.Context, patience time.Duration, open func() (local.State, error)) (local.State, error) {
	for end := time.Now().Add(patience); ; {
		s, err := open()
		if err == nil || api.CodeOf(err) != api.Busy && !errors.Is(err, remote.ErrGone) || time.Now().After(end) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockAgain):
		}
	}
}

// checkpointInfo finds a checkpoint by its path.
func (a *app) checkpointInfo(ctx context.Context, path string) (c api.Checkpoint, err error) {
	p, err := api.ParsePath(path)
	if err != nil {
		return c, err
	}
	return c, a.withState(ctx, false, func(s local.State) error {
		c, err = s.Info(ctx, p)
		return err
	})
}

// parsePaths reads the paths on a command line.
func parsePaths(args []string) ([]api.Path, error) {
	paths := make([]api.Path, len(args))
	for i, arg := range args {
		var err error
		if paths[i], err = api.ParsePath(arg); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// timeText is a time as tables have it; the zero time is empty.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04")
}
