package kernels

// Unimplemented answers every op with [ErrUnimplemented]. A device embeds it in its Ops so that a new op of the
// contract does not stop it from building; kerneltest then skips the op and says so.
type Unimplemented struct{}

var _ Ops = Unimplemented{}

func (Unimplemented) Zero(Tensor) error                             { return ErrUnimplemented }
func (Unimplemented) Copy(_, _ Tensor) error                        { return ErrUnimplemented }
func (Unimplemented) Add(_, _, _ Tensor) error                      { return ErrUnimplemented }
func (Unimplemented) Embed(Tensor, Weight, Tensor) error            { return ErrUnimplemented }
func (Unimplemented) RMSNorm(_, _, _, _ Tensor, _ float32) error    { return ErrUnimplemented }
func (Unimplemented) RMSNormBackward(_, _, _, _, _, _ Tensor) error { return ErrUnimplemented }
func (Unimplemented) Linear(LinearArgs) error                       { return ErrUnimplemented }
func (Unimplemented) LinearBackward(LinearBackwardArgs) error       { return ErrUnimplemented }
func (Unimplemented) RoPE(RoPEArgs) error                           { return ErrUnimplemented }
func (Unimplemented) RoPEBackward(RoPEBackwardArgs) error           { return ErrUnimplemented }
func (Unimplemented) Attention(AttentionArgs) error                 { return ErrUnimplemented }
func (Unimplemented) AttentionBackward(AttentionBackwardArgs) error { return ErrUnimplemented }
func (Unimplemented) SwiGLU(_, _ Tensor) error                      { return ErrUnimplemented }
func (Unimplemented) SwiGLUBackward(_, _, _ Tensor) error           { return ErrUnimplemented }
func (Unimplemented) Route(RouteArgs) error                         { return ErrUnimplemented }
func (Unimplemented) RouteBackward(RouteBackwardArgs) error         { return ErrUnimplemented }
func (Unimplemented) Experts(ExpertsArgs) error                     { return ErrUnimplemented }
func (Unimplemented) ExpertsBackward(ExpertsBackwardArgs) error     { return ErrUnimplemented }
func (Unimplemented) LogProbs(LogProbsArgs) error                   { return ErrUnimplemented }
func (Unimplemented) LogProbsBackward(LogProbsBackwardArgs) error   { return ErrUnimplemented }
func (Unimplemented) Logits(LogitsArgs) error                       { return ErrUnimplemented }
func (Unimplemented) SumSquares(Tensor) (float64, error)            { return 0, ErrUnimplemented }
func (Unimplemented) AdamW(AdamWArgs) error                         { return ErrUnimplemented }
