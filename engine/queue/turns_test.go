package queue_test

import (
	"strings"
	"testing"

	"tinkerlocal/engine/queue"
)

func TestTurns(t *testing.T) {
	var turns queue.Turns[string]
	take := func(n int, ready string) string {
		var out strings.Builder
		for range n {
			k, ok := turns.Next(func(k string) bool { return strings.Contains(ready, k) })
			if !ok {
				k = "-"
			}
			out.WriteString(k)
		}
		return out.String()
	}
	check := func(got, want string) {
		t.Helper()
		if got != want {
			t.Fatalf("turns are %s, wanted %s", got, want)
		}
	}
	check(take(2, "abc"), "--")
	for _, k := range []string{"a", "b", "c", "b"} {
		turns.Add(k)
	}
	check(take(7, "abc"), "abcabca")
	check(take(3, "ac"), "cac")
	check(take(2, ""), "--")
	turns.Add("d") // its turn comes last
	check(take(5, "abcd"), "abcda")
	turns.Remove("b")
	turns.Remove("x")
	check(take(4, "abcd"), "cdac")
	turns.Remove("a")
	turns.Remove("c")
	turns.Remove("d")
	check(take(1, "abcd"), "-")
}

// TestShare: at most one micro-batch between two decode steps, and no idling.
func TestShare(t *testing.T) {
	var s queue.Share
	names := map[queue.Work]string{queue.Nothing: "-", queue.Train: "t", queue.Decode: "d"}
	got := ""
	for _, ready := range []string{"td", "td", "td", "t", "t", "td", "d", "d", "td", "", "td"} {
		got += names[s.Pick(strings.Contains(ready, "t"), strings.Contains(ready, "d"))]
	}
	if want := "dtdttdddt-d"; got != want {
		t.Fatalf("work is %s, wanted %s", got, want)
	}
}
