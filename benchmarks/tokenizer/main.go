// Command tokenizer times our tokenizer on documents, one line of standard input after the other, for tokenizer.py:
// "encode N" and "decode N" run all documents on N goroutines and answer seconds; "ids" answers the ids of each document.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tinkerlocal/engine/token"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "tokenizer:", err)
		os.Exit(1)
	}
}

func serve() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("wanted: tokenizer TOKENIZER.json DOCUMENTS.json")
	}
	file, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	t, err := token.Parse(file)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(os.Args[2])
	if err != nil {
		return err
	}
	var docs []string
	if err := json.Unmarshal(text, &docs); err != nil {
		return err
	}
	ids := make([][]int32, len(docs))
	answer := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var threads int
		what, _, _ := strings.Cut(lines.Text(), " ")
		_, _ = fmt.Sscanf(lines.Text(), "%s %d", &what, &threads)
		begin := time.Now()
		switch what {
		case "encode":
			each(len(docs), threads, func(i int) { ids[i] = t.Encode(docs[i], false) })
		case "decode":
			each(len(docs), threads, func(i int) { t.Decode(ids[i], false) })
		case "ids":
			if err := answer.Encode(ids); err != nil {
				return err
			}
			continue
		}
		if err := answer.Encode(time.Since(begin).Seconds()); err != nil {
			return err
		}
	}
	return nil
}

// each calls do for 0..n-1 on so many goroutines.
func each(n, threads int, do func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range threads {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	wg.Wait()
}
