package engine

import (
	"context"
	"io"
	"sync"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/sample"
)

// Token is one sampled token of a stream.
type Token struct {
	Sample  int     // which of the request's samples it belongs to
	ID      int32   // the token
	LogProb float32 // as in api.SampledSequence.LogProbs
	Raw     float32 // as in api.SampledSequence.RawLogProbs
}

// Stream hands out the tokens of a request as they are drawn. It holds those not yet asked for: at
// most NumSamples*MaxTokens of them.
type Stream struct {
	future *Future[api.SampleOutput]

	mu     sync.Mutex
	tokens []Token
	more   chan struct{} // has a token when tokens or ended has changed
	ended  bool
}

func newStream(f *Future[api.SampleOutput]) *Stream {
	return &Stream{future: f, more: make(chan struct{}, 1)}
}

// Next blocks for the next token of any sample. It answers io.EOF after the last one, the request's error
// when it failed, and ctx's error when ctx ends first. One goroutine at a time calls it.
func (s *Stream) Next(ctx context.Context) (Token, error) {
	for {
		s.mu.Lock()
		if len(s.tokens) > 0 {
			t := s.tokens[0]
			s.tokens = s.tokens[1:]
			s.mu.Unlock()
			return t, nil
		}
		ended := s.ended
		s.mu.Unlock()
		if ended {
			if _, err := s.future.Wait(ctx); err != nil {
				return Token{}, err
			}
			return Token{}, io.EOF
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return Token{}, context.Cause(ctx)
		}
	}
}

// Future has the whole result when the request has ended; its Cancel ends the stream.
func (s *Stream) Future() *Future[api.SampleOutput] { return s.future }

func (s *Stream) emit(index int, c sample.Choice) {
	s.put(func() { s.tokens = append(s.tokens, Token{index, c.Token, c.LogProb, c.Raw}) })
}

func (s *Stream) finish() { s.put(func() { s.ended = true }) }

func (s *Stream) put(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
}
