package server

import (
	"net/http"
	"strings"
	"testing"
)

// TestSecrets: no log line has a key, a link's signature, or what clients say in their bodies, whatever they ask and whatever goes wrong.
func TestSecrets(t *testing.T) {
	f := start(t, func(s *setting) { s.Keys = twoKeys; s.Server.Admin = KeyPrefix + "admin-secret-0123" })
	alice, bob := f.as(aliceKey), f.as(bobKey)
	const note = "very-private-note"
	secret := KeyPrefix + "another-secret-key"
	n := furnish(alice, "note")
	s := alice.post("create_session", object{"user_metadata": object{"text": note}, "display_name": note, "project_id": note})["session_id"].(string)
	for _, c := range routeCases {
		r := c.ask(n)
		for _, who := range []client{alice, bob, f.as(secret), f.as(KeyPrefix + "admin-secret-0123")} {
			who.do(r.method, r.path, r.body)
			who.do(r.method, r.path, raw{body: []byte(`{"` + note + `": [`)})
			who.do(r.method, r.path, raw{body: []byte(`["` + note + `"]`)})
			who.do(r.method, r.path+"/"+"x?key="+secret, r.body)
		}
	}
	alice.post("telemetry", object{"events": []object{{"event_data": object{"headers": object{"X-API-Key": aliceKey}, "text": note}}}})
	mine := bob.model(bob.session(), 0)
	for i, body := range []object{
		{"path": "tinker://x/weights/y", "weights_access_token": secret},
		{"path": n.tinker("weights", n.checkpoint), "weights_access_token": aliceKey},
		{"path": 5, "weights_access_token": secret},
		{"path": note + aliceKey, "weights_access_token": []string{secret}},
	} {
		body["model_id"], body["seq_id"] = mine, i+1
		bob.result(bob.submit("load_weights", body))
	}
	for _, metadata := range []any{note, []string{note}, object{"a": []string{note}}} {
		body := createModel(s, 1)
		body["user_metadata"] = metadata
		alice.do("POST", "/api/v1/create_model", body)
		alice.do("POST", "/api/v1/create_session", object{"user_metadata": metadata, "tags": note})
	}
	for _, stop := range []any{note, []string{note}, object{"x": note}} {
		p := alice.baseSampler(s, 0)
		body := sampleFrom(p, 0, 3)
		body["sampling_params"].(object)["stop"] = stop
		alice.do("POST", "/api/v1/asample", body)
	}
	link := alice.do("GET", n.path("weights", n.checkpoint)+"/archive", nil)
	url, _ := link.json()["url"].(string)
	_, query, _ := strings.Cut(url, "?")
	alice.do("GET", "/archive/"+n.model+"/weights/"+n.checkpoint+"?"+query+"x", nil)
	plain := f.server.handler
	f.server.handler = f.server.guarded(routesThatPanic{})
	alice.do("POST", "/api/v1/asample?x="+secret, object{"note": note})
	f.server.handler = plain

	log := f.log.String()
	if len(log) < 10_000 || !strings.Contains(log, "a defect") {
		t.Fatalf("the log has %d bytes", len(log))
	}
	for _, private := range []string{aliceKey, bobKey, secret, "admin-secret-0123", note, "signature="} {
		for line := range strings.Lines(log) {
			if strings.Contains(line, private) {
				t.Errorf("%q is in the log: %.400s", private, line)
				break
			}
		}
	}
}

// routesThatPanic has a defect in every route.
type routesThatPanic struct{}

func (routesThatPanic) ServeHTTP(http.ResponseWriter, *http.Request) { panic("a defect") }
