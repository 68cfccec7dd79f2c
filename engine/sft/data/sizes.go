package data

// Sizes add up the examples of a set. A preference pair is one example here; its tokens are those of both answers.
type Sizes struct {
	Examples    int
	Tokens      int64   // input tokens
	Targets     int64   // of them predict something that is learned
	Longest     int     // input tokens of the longest sequence
	LongestLine int     // where it stands
	Mean        float64 // tokens per example
}

// Sizes measures the set.
func (s *Set) Sizes() Sizes {
	z := Sizes{Examples: len(s.entries)}
	for _, e := range s.entries {
		z.Tokens += int64(e.tokens)
		z.Targets += int64(e.targets)
		if int(e.longest) > z.Longest {
			z.Longest, z.LongestLine = int(e.longest), int(e.line)
		}
	}
	if z.Examples > 0 {
		z.Mean = float64(z.Tokens) / float64(z.Examples)
	}
	return z
}

// Packing is how well batches fill the engine's micro-batches.
type Packing struct {
	Steps        int     // batches of one pass over the set
	MicroBatches int     // forward and backward passes they take
	Used         float64 // share of the micro-batches' token budget that holds tokens
	Padded       float64 // tokens that padding each batch to its longest sequence would process, per token; packing processes 1
}

// Packing goes through one pass over the set: rows in this order, batch of them per step, each step cut into micro-batches
// of at most budget tokens as the engine does; a longer sequence makes one of its own.
func (s *Set) Packing(order []int, batch, budget int) Packing {
	var p Packing
	var tokens, room, padded int64
	for lo := 0; lo < len(order); lo += batch {
		p.Steps++
		used, longest, sequences := 0, 0, 0
		close := func() {
			if used > 0 {
				p.MicroBatches++
				room += int64(max(used, budget))
				used = 0
			}
		}
		for _, i := range order[lo:min(lo+batch, len(order))] {
			e := s.entries[i]
			lengths := []int{int(e.tokens)}
			if s.prefers {
				// Which answer is the longer one does not matter for the sum.
				lengths = []int{int(e.longest), int(e.tokens - e.longest)}
			}
			for _, n := range lengths {
				if used > 0 && used+n > budget {
					close()
				}
				used += n
				tokens += int64(n)
				longest = max(longest, n)
				sequences++
			}
		}
		close()
		padded += int64(longest * sequences)
	}
	if tokens > 0 {
		p.Used = float64(tokens) / float64(room)
		p.Padded = float64(padded) / float64(tokens)
	}
	return p
}
