//go:build race

package plugins

// With the race detector, the host's own work for a guest takes ten times as long: times say nothing.
const timed = false
