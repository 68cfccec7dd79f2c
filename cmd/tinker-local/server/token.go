package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"tinkerlocal/cmd/tinker-local/server/wire"
	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// Clients since 0.25 exchange their key for a token, a JWT (RFC 7519), and send that instead of it: the claims tell them who they are. A
// token is signed with HMAC-SHA256 and names the key that it was given for; it is worth nothing when the key is not the server's any more.

// tokenLife is how long a token is good. Clients renew theirs long before.
const tokenLife = 24 * time.Hour

// tokenHeader is the first part of every token; another one, which might name another way of signing, is not read.
var tokenHeader = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

// tokenPrefix begins every JWT, and no key.
const tokenPrefix = "eyJ"

// claims are what a token says.
type claims struct {
	Issuer       string `json:"iss"`
	Subject      string `json:"sub"` // URN of the owner
	Organization string `json:"org_id"`
	Issued       int64  `json:"iat"`
	Expires      int64  `json:"exp"`
	Owner        string `json:"owner"`
	Key          string `json:"key"` // fingerprint
}

// fingerprint tells a key apart from others without telling it.
func (s *Server) fingerprint(key string) string {
	sum := sha256.Sum256([]byte(key))
	if s.opt.Keys == nil {
		sum = [sha256.Size]byte{} // all are one owner's
	}
	return s.keyMAC(sum)
}

func (s *Server) keyMAC(sum [sha256.Size]byte) string {
	return hex.EncodeToString(s.mac("key", string(sum[:]))[:16])
}

// fingerprints are those of all keys, with their owners.
func (s *Server) fingerprints() map[string]string {
	out := map[string]string{}
	if s.opt.Keys == nil {
		out[s.keyMAC([sha256.Size]byte{})] = engine.LocalOwner
		return out
	}
	for _, o := range s.opt.Keys.owners {
		out[s.keyMAC(o.sum)] = o.owner
	}
	return out
}

func (s *Server) tokenMAC(signed string) string {
	return base64.RawURLEncoding.EncodeToString(s.mac("token", signed))
}

// newToken gives out a token for a key of owner's.
func (s *Server) newToken(owner, fingerprint string) (string, error) {
	now := s.opt.Now()
	body, err := json.Marshal(claims{
		Issuer: "tinker-local", Subject: userURN(owner), Organization: organization, Owner: owner, Key: fingerprint,
		Issued: now.Unix(), Expires: now.Add(tokenLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed := tokenHeader + "." + base64.RawURLEncoding.EncodeToString(body)
	return signed + "." + s.tokenMAC(signed), nil
}

// readToken says what a token of this server's says, if it is good still.
func (s *Server) readToken(token string) (c claims, ok bool) {
	i := strings.LastIndexByte(token, '.')
	if i < 0 || !hmac.Equal([]byte(token[i+1:]), []byte(s.tokenMAC(token[:i]))) {
		return c, false
	}
	header, body, _ := strings.Cut(token[:i], ".")
	text, err := base64.RawURLEncoding.DecodeString(body)
	if header != tokenHeader || err != nil || json.Unmarshal(text, &c) != nil {
		return claims{}, false
	}
	return c, s.opt.Now().Unix() < c.Expires && s.keyOwners[c.Key] == c.Owner
}

// credential says whose a key or a token is, and which key it stands for.
func (s *Server) credential(key string) (owner, fingerprint string, ok bool) {
	if strings.HasPrefix(key, tokenPrefix) {
		c, ok := s.readToken(key)
		return c.Owner, c.Key, ok
	}
	owner, ok = s.opt.Keys.owner(key)
	return owner, s.fingerprint(key), ok
}

// authToken exchanges the call's key, or a token of it, for a fresh token.
func (s *Server) authToken(c *call) (any, error) {
	if c.admin {
		return nil, api.Errorf(api.BadRequest, "the key of the server's own command line is not exchanged for a token")
	}
	token, err := s.newToken(c.owner, c.fingerprint)
	return wire.AuthTokenResponse{JWT: token}, err
}

// apiKey describes the call's key, for a client that keeps it.
func (s *Server) apiKey(c *call) (any, error) {
	sum := sha256.Sum256([]byte(c.fingerprint))
	return wire.APIKeyOf(int64(binary.BigEndian.Uint32(sum[:])), c.owner), nil
}

// deleteAPIKey refuses: keys come and go with the key file.
func (s *Server) deleteAPIKey(*call) (any, error) {
	return nil, api.Errorf(api.Unsupported, "keys of this server are not deleted by clients: take the key out of the server's key file and start it anew")
}
