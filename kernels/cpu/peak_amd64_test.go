package cpu

import "time"

// peakRate is what one core's registers can do in multiply-adds of the avx2 variant, GFLOP/s, the best of a few runs.
func peakRate() float64 {
	if len(machineVariants()) == 0 {
		return 0
	}
	const steps = 1 << 18
	best := 0.0
	for range 20 {
		start := time.Now()
		fmaPeak(steps)
		best = max(best, steps*12*8*2/time.Since(start).Seconds()/1e9)
	}
	return best
}
