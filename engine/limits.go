package engine

import (
	"time"

	"tinkerlocal/engine/queue"
)

// DefaultMicroBatchTokens is the default of Limits.MicroBatchTokens.
const DefaultMicroBatchTokens = 4096

// Limits bound what an engine takes on. A zero field has the default named beside it.
type Limits struct {
	// Memory is how many bytes of device memory bases, adapters, key/value pools and batches may take
	// together. Default: what the device says is free, less an eighth for everybody else.
	Memory int64

	// MicroBatchTokens is how many tokens one forward and backward packs. Default 4096: enough rows to keep
	// every matrix product busy, few enough that a token being sampled does not wait long for its turn. A longer
	// datum makes a micro-batch of its own.
	MicroBatchTokens int

	// PrefillTokens is how many prompt tokens one decode step may read besides the running sequences.
	// Default 512: a long prompt then delays running sequences by one short step at a time.
	PrefillTokens int

	// DecodeSequences is how many sequences of one base decode together. Default 64: beyond it the head's logits
	// on the host, vocabulary x sequences, grow faster than the weights' reads are shared.
	DecodeSequences int

	// KVPositions is how many positions the key/value pool of one base holds. Default 65536, or as many as fit in a
	// quarter of the free memory if that is less.
	KVPositions int

	// Runs is how many training runs may be open. Default 256; memory usually says no earlier.
	Runs int

	// QueuedOps is how many operations of one run may wait. Default 1024: clients pipeline, and one call of
	// theirs may be many chunks.
	QueuedOps int

	// DatumsPerOp and TokensPerOp bound one forward or forward_backward. Defaults 4096 and 4 Mi: four times
	// the largest chunk that the official client sends.
	DatumsPerOp, TokensPerOp int

	// SampleRequests is how many sampling requests may wait or run. Default 4096: clients of reinforcement
	// learning submit a whole batch of prompts at once.
	SampleRequests int

	// SamplesPerRequest bounds num_samples. Default 1024.
	SamplesPerRequest int

	// TopKPromptLogProbs bounds topk_prompt_logprobs, topk_sample_logprobs, prompt_alt_tokens_k, and how many other tokens of a
	// prompt's place are scored on average. Default 128: the result holds prompt x k pairs of 8 bytes,
	// 32 MiB for a prompt of 32768 tokens, and distillation uses about 20.
	TopKPromptLogProbs int

	// StopStrings bounds the stop strings of one request, StopBytes the length of each. Defaults 64 and
	// 1024: every one is searched for after every token.
	StopStrings, StopBytes int

	// GapWait is how long operations wait for a sequence number below theirs that has not arrived. Default
	// 30 s: the official client sends the chunks of a call together, so a number that is half a minute late was lost.
	GapWait time.Duration

	// Remembered is how many finished numbered operations of a run still answer a repeat of their
	// number. Default 256: a client repeats only what it has just sent.
	Remembered int

	// LossTime bounds one evaluation of a loss that is not built in. Default 60 s.
	LossTime time.Duration

	// HoldWait is how long a Held waits for its Backward. Default 60 s: a caller that computes a loss needs a
	// fraction of it, and one that has gone away keeps memory from nobody, since tapes are given up when it is short.
	HoldWait time.Duration

	// KeptForwards is how many forwards of a run may keep their activations for a backward that may follow: see
	// [Run.Forward]. Default 64; negative: none. What they keep is given back as soon as anybody needs the memory, an
	// optim_step or a load ends it, and HoldWait bounds it. A forward keeps them only if they fit into half of the memory
	// that is free, and if it does not share its batch with other runs, which it prefers unless its run has had a match. At first four of a run
	// do; more when a match shows that more would have been of use. A run that only evaluates is found out: after 16 forwards
	// without a match, or twice as many as there were before one so far, nothing is kept until there is a match again. The first custom loss
	// after that costs its forward twice.
	KeptForwards int

	// IdleBytes bounds the weights of idle samplers that are set aside when device memory is short, IdleHostBytes those that
	// no Shelf takes. Defaults 64 GiB and 8 GiB: hundreds of steps of reinforcement learning. Beyond it, samplers that nobody has drawn from
	// for the longest time are given up.
	IdleBytes, IdleHostBytes int64

	// Holds is how many a run may have open. Default 64: each keeps its batch on the host.
	Holds int
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		v   *int
		def int
	}{
		{&l.MicroBatchTokens, DefaultMicroBatchTokens}, {&l.PrefillTokens, 512}, {&l.DecodeSequences, 64}, {&l.KVPositions, 65536},
		{&l.Runs, 256}, {&l.QueuedOps, 1024}, {&l.DatumsPerOp, 4096}, {&l.TokensPerOp, 4 << 20},
		{&l.SampleRequests, 4096}, {&l.SamplesPerRequest, 1024}, {&l.StopStrings, 64}, {&l.StopBytes, 1024},
		{&l.TopKPromptLogProbs, 128}, {&l.Remembered, 256}, {&l.Holds, 64},
	} {
		if *f.v <= 0 {
			*f.v = f.def
		}
	}
	if l.KeptForwards == 0 {
		l.KeptForwards = 64
	}
	if l.IdleBytes <= 0 {
		l.IdleBytes = 64 << 30
	}
	if l.IdleHostBytes <= 0 {
		l.IdleHostBytes = 8 << 30
	}
	if l.GapWait <= 0 {
		l.GapWait = 30 * time.Second
	}
	if l.LossTime <= 0 {
		l.LossTime = time.Minute
	}
	if l.HoldWait <= 0 {
		l.HoldWait = time.Minute
	}
	return l
}

func (l Limits) queue(first int64) queue.Limits {
	return queue.Limits{First: first, Queued: l.QueuedOps, Remembered: l.Remembered, GapWait: l.GapWait}
}
