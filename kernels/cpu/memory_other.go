//go:build !linux

package cpu

// systemMemory is not known here without a system library.
func systemMemory() (total, free int64) { return 0, 0 }
