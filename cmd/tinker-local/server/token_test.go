package server_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tinkerlocal/cmd/tinker-local/server"
)

// token exchanges a client's key.
func (c *client) token() string {
	c.t.Helper()
	return c.call("auth/token", object{})["jwt"].(string)
}

// TestTokens: a token stands for the key that it was given for, with what its owner may do; it tells who that is.
func TestTokens(t *testing.T) {
	h := newHost(t)
	ann, bob := h.as(annKey), h.as(bobKey)
	with := h.as(ann.token())
	session := with.session()
	ann.call("session_heartbeat", object{"session_id": session})
	bob.refused(404, "there is no session", "POST", "/api/v1/session_heartbeat", object{"session_id": session})
	h.as(with.token()).call("session_heartbeat", object{"session_id": session}) // a token of a token

	body, err := base64.RawURLEncoding.DecodeString(strings.Split(with.key, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Sub, Org_id string
		Exp, Iat    int64
	}
	if err := json.Unmarshal(body, &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Sub != "urn:tinker-local:user:ann" || claims.Org_id != "tinker-local" || claims.Exp-claims.Iat != 24*60*60 {
		t.Errorf("the token says %s", body)
	}
	if strings.Contains(string(body), annKey) || strings.Contains(string(body), annKey[4:]) {
		t.Errorf("the token tells the key: %s", body)
	}

	// It may be lent, as a key may.
	model := ann.model(ann.session(), 0)
	path := ann.work("save_weights", object{"model_id": model, "seq_id": 1, "path": "x"})["path"]
	bob.work("load_weights", object{"session_id": bob.session(), "model_seq_id": 0, "path": path, "optimizer": false, "weights_access_token": with.key})

	h.pass(23 * time.Hour)
	with.session()
	h.pass(2 * time.Hour)
	with.refused(401, "the token in X-API-Key is not one of this server's, or not any more", "POST", "/api/v1/create_session", object{"tags": []string{}})
	bob.refused(400, "weights_access_token is not a key", "POST", "/api/v1/load_weights", object{
		"session_id": bob.session(), "model_seq_id": 1, "path": path, "optimizer": false, "weights_access_token": with.key,
	})
	ann.session() // the key itself is good
}

// TestForgedTokens: what is not signed by this server, or of a key that it does not have, is refused, and newer clients are told to ask anew.
func TestForgedTokens(t *testing.T) {
	h := newHost(t)
	good := h.as(annKey).token()
	parts := strings.Split(good, ".")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	others := &server.Keys{}
	if err := others.Add("ann", "tml-another-0123456789"); err != nil {
		t.Fatal(err)
	}
	for what, token := range map[string]string{
		"another owner":   parts[0] + "." + encode(strings.Replace(string(body), `"ann"`, `"bob"`, 1)) + "." + parts[2],
		"no signature":    parts[0] + "." + parts[1] + ".",
		"alg none":        encode(`{"alg":"none","typ":"JWT"}`) + "." + parts[1] + ".",
		"another header":  encode(`{"typ":"JWT","alg":"HS256"}`) + "." + parts[1] + "." + parts[2],
		"cut off":         good[:len(good)-1],
		"longer":          good + "A",
		"two parts":       parts[0] + "." + parts[2],
		"no parts":        "eyJ",
		"of other keys":   newHostWith(t, nil, others).as("tml-another-0123456789").token(),
		"without any key": newHostWith(t, nil, nil).as("tml-whatever").token(),
	} {
		c := h.as(token)
		r, err := http.NewRequest("GET", h.url+"/api/v1/checkpoints", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-API-Key", token)
		w, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		w.Body.Close()
		if w.StatusCode != http.StatusUnauthorized || w.Header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
			t.Errorf("%s: %d %q", what, w.StatusCode, w.Header.Get("WWW-Authenticate"))
		}
		c.refused(401, "the token", "POST", "/api/v1/auth/token", object{})
	}
	// A server that was started anew with the same secret and key takes it.
	if got := newHost(t).as(good).do("GET", "/api/v1/sessions", nil); fmt.Sprint(got["sessions"]) != "[]" {
		t.Errorf("after a new start: %v", got)
	}
}

// TestTokensOfAnyKey: without a key file every key is one owner's, and so is every token.
func TestTokensOfAnyKey(t *testing.T) {
	h := newHostWith(t, nil, nil)
	one, two := h.as(h.as("tml-one").token()), h.as(h.as("tml-two").token())
	two.call("session_heartbeat", object{"session_id": one.session()})
	h.as("sk-one").refused(401, "the key in X-API-Key", "POST", "/api/v1/auth/token", object{})
}

// TestAPIKey: a key is described to whoever has it, the same for its tokens, and cannot be deleted from afar.
func TestAPIKey(t *testing.T) {
	h := newHost(t)
	ann := h.as(annKey)
	const me = "/api/v1/auth/apikey/me"
	k := ann.do("GET", me, nil)
	details := k["details"].(object)
	if k["name"] != "key of ann" || k["note"] != "" || details["user_details"].(object)["email"] != "ann@localhost" || details["org_details"].(object)["name"] != "tinker-local" {
		t.Errorf("the key is %v", k)
	}
	if again := h.as(ann.token()).do("GET", me, nil); fmt.Sprint(again) != fmt.Sprint(k) {
		t.Errorf("by a token the key is %v, wanted %v", again, k)
	}
	if other := h.as(bobKey).do("GET", me, nil); other["key_id"] == k["key_id"] {
		t.Errorf("two keys have the id %v", k["key_id"])
	}
	ann.refused(400, "are not deleted by clients", "DELETE", me, nil)
	h.as("tml-nobody-01234567").refused(401, "the key in X-API-Key", "GET", me, nil)
}
