// Package sdk tmp.
package sdk

// Languages tmp.
func Languages() []string { return []string{"c"} }

// New tmp.
func New(dir, lang, name string) error { return nil }
