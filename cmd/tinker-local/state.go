package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/local"
)

// isCheckpoint tells a checkpoint's path from a folder's.
func isCheckpoint(adapter string) bool { return strings.HasPrefix(adapter, "tinker://") }

// withState calls do with the store in the state directory. One that is not there is made only if make is set: otherwise it is empty.
func (a *app) withState(make bool, do func(s *local.State) error) error {
	s, err := local.OpenState(a.state, make, nil)
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

// checkpointInfo finds a checkpoint by its path.
func (a *app) checkpointInfo(ctx context.Context, path string) (c api.Checkpoint, err error) {
	p, err := api.ParsePath(path)
	if err != nil {
		return c, err
	}
	return c, a.withState(false, func(s *local.State) error {
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
