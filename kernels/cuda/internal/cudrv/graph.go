//go:build cuda && linux

package cudrv

// #include <cuda.h>
import "C"

import (
	"errors"

	"gorgonia.org/cu"
)

// Graph is work captured from a stream; Launch issues all of it at once.
type Graph struct{ exec C.CUgraphExec }

// Capture records what issue puts on the stream instead of running it. issue must not wait for the device, allocate
// on it, load modules or change the thread.
func Capture(s cu.Stream, issue func() error) (*Graph, error) {
	if err := check("cuStreamBeginCapture", C.cuStreamBeginCapture(stream(s), C.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)); err != nil {
		return nil, err
	}
	failed := issue()
	var graph C.CUgraph
	ended := check("cuStreamEndCapture", C.cuStreamEndCapture(stream(s), &graph)) // ends the capture whatever issue said
	if graph != nil {
		defer C.cuGraphDestroy(graph)
	}
	if err := errors.Join(failed, ended); err != nil {
		return nil, err
	}
	var g Graph
	if err := check("cuGraphInstantiateWithFlags", C.cuGraphInstantiateWithFlags(&g.exec, graph, 0)); err != nil {
		return nil, err
	}
	return &g, nil
}

// Upload readies the graph on the device, which its first Launch would do otherwise.
func (g *Graph) Upload(s cu.Stream) error {
	return check("cuGraphUpload", C.cuGraphUpload(g.exec, stream(s)))
}

// Launch issues the graph on a stream. It does not wait.
func (g *Graph) Launch(s cu.Stream) error {
	return check("cuGraphLaunch", C.cuGraphLaunch(g.exec, stream(s)))
}

// Close frees the graph.
func (g *Graph) Close() error {
	return check("cuGraphExecDestroy", C.cuGraphExecDestroy(g.exec))
}
