package data

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"tinkerlocal/engine/chat"
	"tinkerlocal/engine/local"
	"tinkerlocal/engine/sft"
)

var (
	_ sft.Source     = (*Set)(nil)
	_ sft.PairSource = (*Set)(nil)
)

// options read with the embedded model's tokenizer, whose ids are bytes; 256 is its end of text.
func options(t testing.TB) Options {
	t.Helper()
	tok, err := local.Models{}.Tokenizer(local.TinyModel)
	if err != nil {
		t.Fatal(err)
	}
	f, err := chat.ByName("qwen3_instruct")
	if err != nil {
		t.Fatal(err)
	}
	return Options{Tokenizer: tok, End: 256, Format: f, MaxTokens: 100, LimitName: "the limit", TooLong: Refuse}
}

func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d.jsonl")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, text string, o Options) *Set {
	t.Helper()
	s, err := Open(file(t, text), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// show writes an example's text with the trained parts in brackets.
func show(o Options, e sft.Example) string {
	var b strings.Builder
	in := false
	for i, id := range e.Tokens {
		if e.Trained[i] != in {
			in = !in
			b.WriteString(map[bool]string{true: "[", false: "]"}[in])
		}
		b.WriteString(o.Tokenizer.Decode([]int32{id}, false))
	}
	if in {
		b.WriteString("]")
	}
	return b.String()
}

// TestExamples: each kind of row becomes the tokens that sampling would see, with the loss on the answer.
func TestExamples(t *testing.T) {
	const talk = `{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, ` +
		`{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}`
	for _, c := range []struct {
		name, row string
		on        chat.TrainOn
		want      []string
	}{
		{"pair", `{"prompt": "hi", "completion": " yo"}`, "", []string{"hi[ yo<|endoftext|>]"}},
		{"empty prompt", `{"prompt": "", "completion": "yo"}`, "", []string{"[yo<|endoftext|>]"}},
		{"all turns", talk, chat.TrainAllAssistant, []string{"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n" +
			"<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]"}},
		{"last turn", talk, chat.TrainLastAssistant, []string{"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n" +
			"<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]"}},
	} {
		o := options(t)
		o.TrainOn = c.on
		s := open(t, c.row, o)
		var got []string
		for i := range s.Len() {
			e, err := s.Example(i)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, show(o, e))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\ngot    %q\nwanted %q", c.name, got, c.want)
		}
	}
}

// TestSeveralTexts: a format that writes earlier turns in another way gives one example for each turn, and both
// come back by their number.
func TestSeveralTexts(t *testing.T) {
	o := options(t)
	o.MaxTokens = 1000
	o.Format, _ = chat.ByName("qwen3")
	s := open(t, `{"prompt": "p", "completion": "q"}`+"\n"+
		`{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nx\n</think>\n\nb"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}`, o)
	if s.Len() != 3 || s.Report().Rows != 2 {
		t.Fatalf("%d examples of %d rows", s.Len(), s.Report().Rows)
	}
	for i, want := range []string{"[q<|endoftext|>]", "[<think>\nx\n</think>\n\nb<|im_end|>]", "d<|im_end|>]"} {
		e, err := s.Example(i)
		if got := show(o, e); err != nil || !strings.HasSuffix(got, want) {
			t.Errorf("example %d is %q, %v; wanted it to end with %q", i, got, err, want)
		}
	}
	train, val, err := s.Split(0.5, 3)
	if err != nil || train.Len()+val.Len() != 3 || train.Len() == 0 || val.Len() == 0 {
		t.Fatalf("split into %v and %v, %v", train, val, err)
	}
	for _, p := range []*Set{train, val} {
		if p.Len() == 2 && p.Line(0) != p.Line(1) {
			t.Error("the examples of one row were torn apart")
		}
	}
}

// TestPreference: the forms that preference rows come in give the same two sequences.
func TestPreference(t *testing.T) {
	o := options(t)
	for _, row := range []string{
		`{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "y"}], "rejected": [{"role": "assistant", "content": "n"}]}`,
		`{"prompt": [{"role": "user", "content": "q"}], "chosen": "y", "rejected": "n"}`,
		`{"prompt": "q", "chosen": [{"role": "assistant", "content": "y"}], "rejected": [{"role": "assistant", "content": "n"}]}`,
		`{"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "n"}]}`,
		`{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "n"}]}`,
	} {
		s := open(t, row, o)
		p, err := s.Pair(0)
		if err != nil || !s.Prefers() {
			t.Fatalf("%s: %v, %t", row, err, s.Prefers())
		}
		const prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
		if a, b := show(o, p.Chosen), show(o, p.Rejected); a != prompt+"[y<|im_end|>]" || b != prompt+"[n<|im_end|>]" {
			t.Errorf("%s: %q and %q", row, a, b)
		}
	}
	s := open(t, `{"prompt": "q:", "chosen": " yes", "rejected": " no"}`, o)
	p, err := s.Pair(0)
	if a, b := show(o, p.Chosen), show(o, p.Rejected); err != nil || a != "q:[ yes<|endoftext|>]" || b != "q:[ no<|endoftext|>]" {
		t.Errorf("text: %q and %q, %v", a, b, err)
	}
}

// TestBadRows: each is named by line and reason.
func TestBadRows(t *testing.T) {
	const good = `{"prompt": "a", "completion": "b"}`
	for _, c := range []struct{ row, want string }{
		{`{oops`, "not a row: invalid character"},
		{`["a"]`, "not a row: json: cannot unmarshal array"},
		{`null`, "not a row: null"},
		{"{\"prompt\": \"\xff\", \"completion\": \"b\"}", "byte 12 of the line is not UTF-8"},
		{good + good, "more than one JSON value on the line"},
		{`{"prompt": "a", "completions": "b"}`, `"completion" is missing; the row's fields are completions, prompt`},
		{`{"Prompt": "a", "completion": "b"}`, `"prompt" is missing; the row's fields are Prompt, completion`},
		{`{"prompt": 3, "completion": "b"}`, `"prompt" is 3, wanted a string`},
		{`{"prompt": null, "completion": "b"}`, `"prompt" is null, wanted a string`},
		{`{"prompt": "a", "completion": ""}`, `"completion" is empty: nothing to learn`},
		{`{"prompt": "` + strings.Repeat("x", 200) + `", "completion": "b"}`, "the row has 201 tokens, the limit is 100"},
		{`{"messages": "hi"}`, `"messages" is "hi", wanted a list of messages`},
		{`{"messages": []}`, `"messages" is empty`},
		{`{"messages": [{"role": "user", "content": "a"}, {"role": "judge", "content": "b"}]}`, `judge`},
		{`{"messages": [{"role": "user", "content": "a"}]}`, "nothing to train on"},
		{`{"messages": [{"role": "user", "content": 7}]}`, `"messages", message 0: `},
		{`{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": 3}`, `"tools": `},
		{`{"prompt": "a", "chosen": "b"}`, `"rejected" is missing; the row's fields are chosen, prompt`},
		{`{"prompt": "a", "chosen": "b", "rejected": "b"}`, `"chosen" and "rejected" are the same`},
		{`{"prompt": "a", "chosen": "b", "rejected": ""}`, `"rejected" is empty`},
		{`{"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "n"}]}`, "one is text and one is messages"},
		{`{"chosen": [{"role": "assistant", "content": "b"}], "rejected": [{"role": "assistant", "content": "n"}]}`, `"prompt" is missing, and "chosen" is not a whole conversation`},
		{`{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": [{"role": "assistant", "content": "n"}]}`, `"chosen" ends with a message of the role "user"`},
		{`{"prompt": "a", "chosen": "b", "rejected": "c"}`, "a row of the kind preference in a file that began with other rows"},
	} {
		path := file(t, good+"\n\n"+c.row+"\n"+good+"\n")
		_, err := Open(path, options(t))
		if err == nil || !strings.HasPrefix(err.Error(), path+":3: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, wanted %s:3: … %s", c.row, err, path, c.want)
		}
		o := options(t)
		o.SkipBad = 1
		s := open(t, good+"\n\n"+c.row+"\n"+good+"\n", o)
		if r := s.Report(); s.Len() != 2 || r.Bad != 1 || r.FirstBad[0].Line != 3 || r.Rows != 3 {
			t.Errorf("%s: skipped to %d examples, %+v", c.row, s.Len(), r)
		}
	}
}

// TestManyBadRows: the first few are named, all are counted, and a limit holds.
func TestManyBadRows(t *testing.T) {
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, "{\"prompt\": \"%d\", \"completion\": \"x\"}\n{bad\n", i)
	}
	o := options(t)
	o.SkipBad = 99
	_, err := Open(file(t, b.String()), o)
	if err == nil || !strings.Contains(err.Error(), "d.jsonl:20: ") || strings.Contains(err.Error(), "d.jsonl:22: ") ||
		!strings.HasSuffix(err.Error(), "90 more\n100 of 200 rows are bad, 99 may be skipped") {
		t.Errorf("got %v", err)
	}
	o.SkipBad = 100
	if s := open(t, b.String(), o); s.Len() != 100 || s.Report().Bad != 100 || s.Line(99) != 199 {
		t.Errorf("%d examples, %+v", s.Len(), s.Report())
	}
}

// TestKinds: a forced kind refuses others; fields that nobody reads are told.
func TestKinds(t *testing.T) {
	o := options(t)
	o.Kind = Chat
	_, err := Open(file(t, `{"prompt": "a", "completion": "b"}`), o)
	if err == nil || !strings.Contains(err.Error(), ":1: a row of the kind pairs, wanted chat; its fields are completion, prompt") {
		t.Errorf("got %v", err)
	}
	o = options(t)
	s := open(t, `{"prompt": "a", "completion": "b", "id": 3, "source": "x"}`+"\n"+`{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}`, o)
	if r := s.Report(); !slices.Equal(r.Ignored, []string{"id", "source"}) || r.Kinds[Pairs] != 1 || r.Kinds[Chat] != 1 {
		t.Errorf("%+v", r)
	}
	o.Format, o.FormatErr = nil, os.ErrInvalid
	_, err = Open(file(t, `{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}`), o)
	if err == nil || !strings.Contains(err.Error(), "a conversation needs a chat format: invalid argument") {
		t.Errorf("got %v", err)
	}
}

// TestTooLong: what is too long is left out or cut, and counted; a cut that leaves nothing to learn leaves out.
func TestTooLong(t *testing.T) {
	text := `{"prompt": "ab", "completion": "cdefgh"}` + "\n" + `{"prompt": "abcdefgh", "completion": "x"}` + "\n" + `{"prompt": "a", "completion": "b"}`
	o := options(t)
	o.MaxTokens, o.TooLong = 5, Drop
	s := open(t, text, o)
	if r := s.Report(); s.Len() != 1 || r.Dropped != 2 || r.Truncated != 0 || s.Line(0) != 3 {
		t.Errorf("drop: %d examples, %+v", s.Len(), r)
	}
	o.TooLong = Truncate
	s = open(t, text, o)
	if r := s.Report(); s.Len() != 2 || r.Dropped != 1 || r.Truncated != 1 {
		t.Errorf("truncate: %d examples, %+v", s.Len(), r)
	}
	e, err := s.Example(0)
	if got := show(o, e); err != nil || got != "ab[cdef]" {
		t.Errorf("truncated to %q, %v", got, err)
	}
	s = open(t, `{"prompt": "ab", "chosen": "cdefgh", "rejected": "cdefxy"}`+"\n"+`{"prompt": "a", "chosen": "b", "rejected": "c"}`, o)
	if s.Len() != 1 || s.Report().Dropped != 1 {
		t.Errorf("answers that differ behind the cut: %d pairs, %+v", s.Len(), s.Report())
	}
	o.MaxTokens = 1
	if _, err := Open(file(t, `{"prompt": "abc", "completion": "x"}`), o); err == nil || !strings.Contains(err.Error(), "nothing is left of 1 rows: 0 bad, 1 too long") {
		t.Errorf("got %v", err)
	}
}

// TestFiles: what is not a file of rows is refused; line ends, blank lines and byte-order marks do not matter.
func TestFiles(t *testing.T) {
	for text, want := range map[string]string{"": "no rows; wanted", "\n \n": "no rows; wanted", "\"" + strings.Repeat("x", maxLine+1): ":1: the line is longer than 16777216 bytes"} {
		if _, err := Open(file(t, text), options(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, wanted %q", err, want)
		}
	}
	if _, err := Open(t.TempDir(), options(t)); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	o := options(t)
	s := open(t, "\uFEFF{\"prompt\": \"a\", \"completion\": \"b\"}\r\n\r\n  {\"prompt\": \"c\", \"completion\": \"d\"}", o)
	for i, want := range []string{"a[b<|endoftext|>]", "c[d<|endoftext|>]"} {
		e, err := s.Example(i)
		if got := show(o, e); err != nil || got != want {
			t.Errorf("%q, %v; wanted %q", got, err, want)
		}
	}
}

// TestChanged: a file that changes under training is an error that names the row, not a silent other example.
func TestChanged(t *testing.T) {
	path := file(t, `{"prompt": "aaaa", "completion": "b"}`)
	s, err := Open(path, options(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, text := range []string{`{"prompt": "aaa",  "completion": "b"}`, strings.Repeat("x", 37), ""} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Example(0); err == nil || !strings.Contains(err.Error(), path+":1: the row has changed since it was checked") {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// TestSizes has the numbers of a small file, and of its packing.
func TestSizes(t *testing.T) {
	s := open(t, `{"prompt": "ab", "completion": "c"}`+"\n"+`{"prompt": "abcd", "completion": "efg"}`+"\n"+`{"prompt": "", "completion": "xy"}`, options(t))
	if z := s.Sizes(); z != (Sizes{Examples: 3, Tokens: 3 + 7 + 2, Targets: 2 + 4 + 2, Longest: 7, LongestLine: 2, Mean: 4}) {
		t.Errorf("%+v", z)
	}
	// Batches [3 7] and [2] of at most 8: micro-batches 3, 7 and 2, so 12 of 24; padded to 2·7 and 2.
	if p := s.Packing([]int{0, 1, 2}, 2, 8); p != (Packing{Steps: 2, MicroBatches: 3, Used: 0.5, Padded: 16.0 / 12}) {
		t.Errorf("%+v", p)
	}
	if p := s.Packing([]int{0, 1, 2}, 3, 4); p.MicroBatches != 3 || p.Used != 12.0/15 {
		t.Errorf("a row above the budget: %+v", p)
	}
}

// TestSplit: the parts are disjoint, together the whole, and depend on the seed only.
func TestSplit(t *testing.T) {
	var b strings.Builder
	for i := range 50 {
		fmt.Fprintf(&b, "{\"prompt\": \"%d\", \"completion\": \"x\"}\n", i)
	}
	s := open(t, b.String(), options(t))
	lines := func(s *Set) (out []int) {
		for i := range s.Len() {
			out = append(out, s.Line(i))
		}
		return out
	}
	train, val, err := s.Split(0.1, 7)
	if err != nil {
		t.Fatal(err)
	}
	_, again, _ := s.Split(0.1, 7)
	_, other, _ := s.Split(0.1, 8)
	all := append(lines(train), lines(val)...)
	slices.Sort(all)
	if train.Len() != 45 || val.Len() != 5 || !slices.Equal(all, lines(s)) || !slices.Equal(lines(val), lines(again)) || slices.Equal(lines(val), lines(other)) {
		t.Errorf("%v and %v; again %v, other %v", lines(train), lines(val), lines(again), lines(other))
	}
	if _, _, err := open(t, `{"prompt": "a", "completion": "x"}`, options(t)).Split(0.5, 1); err == nil {
		t.Error("one row was split")
	}
}

// TestMemory: a file of 64 MiB is held as its entries, not as text or tokens.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 64 MiB")
	}
	path := filepath.Join(t.TempDir(), "big.jsonl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	row := []byte(`{"prompt": "` + strings.Repeat("lorem ipsum ", 340) + `", "completion": "x"}` + "\n")
	rows := 0
	for n := 0; n < 64<<20; n += len(row) {
		if _, err := f.Write(row); err != nil {
			t.Fatal(err)
		}
		rows++
	}
	f.Close()
	o := options(t)
	o.MaxTokens = 10000
	before := held()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if grown := held() - before; s.Len() != rows || grown > 4<<20 {
		t.Errorf("%d examples of %d rows hold %d bytes, wanted at most 4 MiB", s.Len(), rows, grown)
	}
	if _, err := s.Example(rows - 1); err != nil {
		t.Error(err)
	}
}

// held is how many bytes are reachable.
func held() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// FuzzParse: no line makes the reader panic, and a row that is read is one that can be encoded or is refused.
func FuzzParse(f *testing.F) {
	f.Add(`{"prompt": "a", "completion": "b"}`)
	f.Add(`{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": []}`)
	f.Add(`{"prompt": "a", "chosen": "b", "rejected": "c"}`)
	f.Add(`{"chosen": [], "rejected": [null]}`)
	o := options(f)
	f.Fuzz(func(t *testing.T, line string) {
		r, err := parse([]byte(line), Auto)
		if err != nil {
			return
		}
		items, err := o.encode(r)
		if err != nil {
			return
		}
		for i := range items {
			_, _ = o.limit(&items[i])
		}
	})
}

// TestNumbers: fields that a loss asks for are numbers of each example, and of both answers of a pair.
func TestNumbers(t *testing.T) {
	o := options(t)
	o.Numbers = []string{"label", "reward"}
	s := open(t, `{"prompt": "a", "completion": "b", "label": true, "reward": -1.5}`+"\n"+`{"reward": 2, "prompt": "a", "completion": "b", "label": false}`, o)
	for i, want := range [][]float64{{1, -1.5}, {0, 2}} {
		e, err := s.Example(i)
		if err != nil || !slices.Equal(e.Numbers, want) {
			t.Errorf("example %d has the numbers %v, %v; wanted %v", i, e.Numbers, err, want)
		}
	}
	if ignored := s.Report().Ignored; len(ignored) > 0 {
		t.Errorf("ignored: %v", ignored)
	}
	p, err := open(t, `{"prompt": "a", "chosen": "b", "rejected": "c", "label": 3, "reward": 0}`, o).Pair(0)
	if want := []float64{3, 0}; err != nil || !slices.Equal(p.Chosen.Numbers, want) || !slices.Equal(p.Rejected.Numbers, want) {
		t.Errorf("pair: %v and %v, %v", p.Chosen.Numbers, p.Rejected.Numbers, err)
	}
	for _, bad := range []string{`"reward": "1"`, `"reward": null`, `"reward": [1]`, `"rewards": 1`} {
		_, err := Open(file(t, `{"prompt": "a", "completion": "b", "label": 1, `+bad+`}`), o)
		if err == nil || !strings.Contains(err.Error(), `"reward" is `) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
