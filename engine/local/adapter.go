package local

import (
	"context"
	"os"

	"tinkerlocal/engine"
	"tinkerlocal/engine/interchange"
)

// WriteAdapter writes a run's weights as a PEFT folder, whole or not at all; an adapter that is there is replaced. What was written is read
// again and compared.
func WriteAdapter(dir, baseModel string, w engine.Weights) error {
	x, err := interchange.PlanPEFT(interchange.FromTensors(baseModel, w.Lora, w.Scale, w.Tensors), interchange.PEFTOptions{})
	if err != nil {
		return err
	}
	return x.Write(context.Background(), dir, interchange.WriteOptions{Replace: true})
}

// ReadAdapter reads a PEFT folder, or an archive in a file, for a run or a sampler. A sampler takes an adapter of some modules as well.
func ReadAdapter(path string) (engine.Weights, error) {
	var s *interchange.Source
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		s, err = interchange.OpenArchive(context.Background(), path, interchange.ReadOptions{})
	} else {
		s, err = interchange.OpenPEFT(path) // it says what is wrong with a path that leads nowhere
	}
	if err != nil {
		return engine.Weights{}, err
	}
	defer s.Close()
	ts, err := s.Tensors()
	return engine.Weights{Lora: s.Lora, Scale: s.Scale, Tensors: ts}, err
}
