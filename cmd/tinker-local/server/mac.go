package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"strings"
)

// mac is the HMAC-SHA256 (RFC 2104) of parts with the server's secret. purpose keeps what is signed for one thing from being taken for another.
// At most one of the parts may have a NUL in it: then it is clear where each begins.
func (s *Server) mac(purpose string, parts ...string) []byte {
	m := hmac.New(sha256.New, s.opt.Secret)
	m.Write([]byte(purpose + "\x00" + strings.Join(parts, "\x00")))
	return m.Sum(nil)
}
