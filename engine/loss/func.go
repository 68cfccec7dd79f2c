package loss

import "context"

// Func is a Loss made of a Go function. It gets the log-probabilities of the whole batch and returns
// w = -dL/dlogprob for each of them, and the metric "loss:sum".
type Func func(ctx context.Context, in Input) (Output, error)

// Eval implements Loss.
func (f Func) Eval(ctx context.Context, in Input) (Output, error) { return f(ctx, in) }
