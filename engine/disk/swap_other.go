//go:build !linux && !darwin

package disk

import "errors"

// swapFiles would exchange two names in one step; this system has no such call.
func swapFiles(_, _ string) error { return errors.ErrUnsupported }
