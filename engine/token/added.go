package token

// addedToken is one entry of added_tokens.
type addedToken struct {
	content                    string
	pattern                    string // what is looked for: the content, normalised if normalized
	id                         int32
	singleWord, lstrip, rstrip bool
	normalized, special        bool
}

// matcher finds added tokens in text: leftmost first, longest of those. A nil matcher finds none.
type matcher struct {
	start  [256]int32 // by first byte: a node, or 0
	nodes  []trieNode // nodes[0] is unused
	tokens []addedToken
	chars  *classTable
}

// trieNode is one byte of one or more patterns. Siblings form a list.
type trieNode struct {
	b              byte
	token          int32 // index of the token that ends here, or -1
	child, sibling int32 // or 0
}

// add puts in a token; its pattern is not empty, and no other has the same.
func (m *matcher) add(t addedToken) {
	pattern := t.pattern
	link := &m.start[pattern[0]]
	at := int32(0)
	for i := range len(pattern) {
		at = *link
		for at != 0 && m.nodes[at].b != pattern[i] {
			link = &m.nodes[at].sibling
			at = *link
		}
		if at == 0 {
			at = int32(len(m.nodes))
			*link = at
			m.nodes = append(m.nodes, trieNode{b: pattern[i], token: -1})
		}
		link = &m.nodes[at].child
	}
	m.nodes[at].token = int32(len(m.tokens))
	m.tokens = append(m.tokens, t)
}

// longest returns the index and end of the longest pattern at s[i], or -1.
func (m *matcher) longest(s string, i int) (token int32, end int) {
	token = -1
	at := m.start[s[i]]
	for k := i; at != 0; {
		k++
		n := &m.nodes[at]
		if n.token >= 0 {
			token, end = n.token, k
		}
		if k == len(s) {
			break
		}
		at = n.child
		for at != 0 && m.nodes[at].b != s[k] {
			at = m.nodes[at].sibling
		}
	}
	return token, end
}

// each calls f for the parts of s in order: an added token with its id, or text between them with -1.
// A token that eats white space to its right can make the next match begin inside what it ate; as in
// the reference, both then count.
func (m *matcher) each(s string, f func(id int32, from, to int)) {
	done := 0
	if m != nil {
		for i := 0; i < len(s); {
			k, end := m.longest(s, i)
			if k < 0 {
				i++
				continue
			}
			from, to := i, end
			i = end
			t := &m.tokens[k]
			if t.singleWord && !m.alone(s, from, to) {
				continue
			}
			if t.lstrip {
				for from > done {
					c, n := m.chars.before(s, from)
					if c&space == 0 {
						break
					}
					from -= n
				}
				from = max(from, done)
			}
			if t.rstrip {
				to = m.chars.run(s, to, space)
			}
			if done < from {
				f(-1, done, from)
			}
			f(t.id, from, to)
			done = to
		}
	}
	if done < len(s) {
		f(-1, done, len(s))
	}
}

// alone tells whether s[from:to] has no word character right before or after it.
func (m *matcher) alone(s string, from, to int) bool {
	before, _ := m.chars.before(s, from)
	after, _ := m.chars.at(s, to)
	return (before|after)&wordy == 0
}

// newMatcher makes the matcher of the tokens that are (not) looked for in normalised text.
func newMatcher(tokens []addedToken, normalized bool) *matcher {
	var m *matcher
	for _, t := range tokens {
		if t.normalized != normalized {
			continue
		}
		if m == nil {
			m = &matcher{chars: classes(), nodes: make([]trieNode, 1)}
		}
		m.add(t)
	}
	return m
}
