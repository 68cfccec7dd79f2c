//go:build !race

package plugins

// timed tests hold the host to its times.
const timed = true
