// Package data reads training files: JSON lines of prompts with completions, of conversations, and of preference pairs.
//
// A file is read twice. Open checks every row, from the JSON to the number of its tokens, so that a
// mistake in the last line is known before the first training step. Training then reads the rows it deals again, from the file.
// What stays in memory is one entry of 32 bytes for each example, the first few complaints, and the rows of one batch; never
// the file's text or its tokens. So ten million rows take 320 MB, whatever their length. A single row is at most 16 MiB.
package data
