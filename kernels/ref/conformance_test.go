package ref_test

import (
	"testing"

	"tinkerlocal/kernels"
	"tinkerlocal/kernels/kerneltest"
	"tinkerlocal/kernels/ref"
)

func openRef(*testing.T) kernels.Device     { return ref.Open() }
func openFloat32(*testing.T) kernels.Device { return ref.OpenFloat32() }

func TestConformance(t *testing.T)        { kerneltest.Run(t, openRef) }
func TestConformanceFloat32(t *testing.T) { kerneltest.Run(t, openFloat32) }
func TestAllocs(t *testing.T)             { kerneltest.Allocs(t, openFloat32) }
func TestInvariance(t *testing.T)         { kerneltest.Invariance(t, openRef, openRef) }
