package local

import (
	_ "embed"
	"strings"
)

//go:embed tiny/words_train.txt
var trainWords string

//go:embed tiny/words_heldout.txt
var heldoutWords string

// Words are the two word lists of the quick-start task. The held-out words are in no pre-training
// document of the embedded model and in no fine-tuning example.
func Words() (train, heldout []string) {
	return strings.Fields(trainWords), strings.Fields(heldoutWords)
}
