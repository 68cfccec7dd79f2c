package api

import "strconv"

// quoted shows a caller's text in an error: escaped, and not longer than a line.
func quoted(s string) string {
	const limit = 160
	if len(s) > limit {
		return strconv.QuoteToASCII(s[:limit]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
