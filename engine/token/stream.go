package token

// Decoder turns ids into text as they come. What Push returns over all ids, followed by Flush, is what
// Decode returns for the ids at once. A Decoder is for one goroutine.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	tail        []byte // the beginning of a character whose end has not come yet, 3 bytes at most
}

// NewDecoder starts a text.
func (t *Tokenizer) NewDecoder(skipSpecial bool) *Decoder {
	return &Decoder{t: t, skipSpecial: skipSpecial}
}

// Push takes the next id and returns the text that is certain now, perhaps none. It never returns
// part of a character.
func (d *Decoder) Push(id int32) string {
	if !d.t.shows(id, d.skipSpecial) {
		return ""
	}
	d.tail = append(d.tail, d.t.out[id]...)
	n := len(d.tail) - incompleteTail(d.tail)
	if n == 0 {
		return ""
	}
	text := string(appendLossy(nil, d.tail[:n]))
	d.tail = append(d.tail[:0], d.tail[n:]...)
	return text
}

// Flush ends the text: it returns what is still held, an unfinished character as U+FFFD. The Decoder
// can then begin a new text.
func (d *Decoder) Flush() string {
	text := string(appendLossy(nil, d.tail))
	d.tail = d.tail[:0]
	return text
}
