package server

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestArchive: a link gives whoever has it one checkpoint, whole, until it ends; and nothing else.
func TestArchive(t *testing.T) {
	f := start(t, func(s *setting) { s.Keys = twoKeys })
	alice := f.as(aliceKey)
	n := furnish(alice, "note")
	told := alice.do("GET", n.path("weights", n.checkpoint)+"/archive", nil).json()
	link := told["url"].(string)
	path, query, _ := strings.Cut(strings.TrimPrefix(link, f.url), "?")
	values, err := url.ParseQuery(query)
	if err != nil || !strings.HasPrefix(link, f.url+"/archive/") || strings.Contains(link, aliceKey) {
		t.Fatalf("the link is %s (%v)", link, err)
	}
	expires, err := time.Parse(time.RFC3339, told["expires"].(string))
	if left := time.Until(expires); err != nil || left < 14*time.Minute || left > 15*time.Minute || strconv.FormatInt(expires.Unix(), 10) != values.Get("expires") {
		t.Errorf("the link ends in %v (%v)", left, err)
	}
	fetch := func(method, path string) answer {
		r, err := http.NewRequest(method, f.url+path, nil) // without any key
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header, body}
	}
	a := fetch("GET", path+"?"+query)
	if a.status != 200 || a.header.Get("Content-Length") != strconv.Itoa(len(a.body)) || !strings.Contains(a.header.Get("Content-Disposition"), "attachment") {
		t.Errorf("the archive: %d %v, %d bytes", a.status, a.header, len(a.body))
	}
	var files []string
	for r := tar.NewReader(bytes.NewReader(a.body)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, h.Name)
	}
	if got := strings.Join(files, " "); got != "adapter_config.json adapter_model.safetensors optimizer.safetensors training_state.json checkpoint_complete" {
		t.Errorf("the archive has %s", got)
	}
	if h := fetch("HEAD", path+"?"+query); h.status != 200 || len(h.body) != 0 || h.header.Get("Content-Length") != a.header.Get("Content-Length") {
		t.Errorf("HEAD: %v %v", h, h.header)
	}

	signature := values.Get("signature")
	with := func(path, expires, signature string) string {
		return path + "?" + url.Values{"expires": {expires}, "signature": {signature}, "notes": {"true"}}.Encode()
	}
	if !strings.Contains(query, "notes=true") {
		t.Errorf("the owner's link is %s", query)
	}
	later := strconv.FormatInt(expires.Unix()+100000, 10)
	for name, tampered := range map[string]string{
		"no query":              path,
		"without the notes":     path + "?expires=" + values.Get("expires") + "&signature=" + signature,
		"no signature":          path + "?expires=" + values.Get("expires"),
		"a longer life":         with(path, later, signature),
		"no end":                with(path, "", signature),
		"an end that is none":   with(path, "never", signature),
		"the end with a sign":   with(path, "+"+values.Get("expires"), signature+"0"),
		"another signature":     with(path, values.Get("expires"), strings.Repeat("0", len(signature))),
		"a part of it":          with(path, values.Get("expires"), signature[:10]),
		"capitals":              with(path, values.Get("expires"), strings.ToUpper(signature)),
		"another checkpoint":    with("/archive/"+n.model+"/weights/other", values.Get("expires"), signature),
		"the sampler's weights": with("/archive/"+n.model+"/sampler_weights/"+n.samplerWeights, values.Get("expires"), signature),
		"another run":           with("/archive/"+n.session+":train:1/weights/"+n.checkpoint, values.Get("expires"), signature),
	} {
		if a := fetch("GET", tampered); a.status != 403 {
			t.Errorf("%s: %v", name, a)
		}
	}
	f.clock.add(15*time.Minute + time.Second)
	if a := fetch("GET", path+"?"+query); a.status != 403 || !strings.Contains(string(a.body), "the link has ended") {
		t.Errorf("afterwards: %v", a)
	}
	fresh := strings.TrimPrefix(alice.do("GET", n.path("weights", n.checkpoint)+"/archive", nil).json()["url"].(string), f.url)
	if a := alice.do("DELETE", n.path("weights", n.checkpoint), nil); a.status != 204 {
		t.Fatal(a)
	}
	if a := fetch("GET", fresh); a.status != 404 {
		t.Errorf("of a checkpoint that was deleted: %v", a)
	}
}

// TestArchiveLinks: old clients get a redirect; links lead where the server is reached.
func TestArchiveLinks(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.PublicURL = "https://tinker.example/below" })
	c := f.client()
	n := furnish(c, "note")
	path := n.path("weights", n.checkpoint) + "/archive"
	a := c.do("GET", path, nil, "X-Stainless-Package-Version", "0.16.1")
	if to := a.header.Get("Location"); a.status != 302 || a.header.Get("Expires") == "" || !strings.HasPrefix(to, "https://tinker.example/below/archive/"+n.model+"/weights/") {
		t.Errorf("an old client: %v to %q", a, to)
	}
	for _, version := range []string{"0.25.0", "0.38.0", "1.0.0", "", "x", "0.x"} {
		if a := c.do("GET", path, nil, "X-Stainless-Package-Version", version); a.status != 200 {
			t.Errorf("version %q: %v", version, a)
		}
	}
	plain := start(t, nil)
	c = plain.client()
	n = furnish(c, "note")
	for _, host := range []string{"evil.example/x", "a b", "user@evil.example", "evil.example#", `evil\example`} {
		r, err := http.NewRequest("GET", plain.url+n.path("weights", n.checkpoint)+"/archive", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		r.Header.Set("X-API-Key", key)
		resp, err := web.Do(r)
		if err != nil {
			continue // the standard library sends no such host
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("host %q: %s", host, resp.Status)
		}
	}
}

// TestDownloadsBounded: only so many downloads are under way.
func TestDownloadsBounded(t *testing.T) {
	f := start(t, func(s *setting) { s.Server.Limits.Downloads = 1 })
	c := f.client()
	n := furnish(c, "note")
	link := c.do("GET", n.path("weights", n.checkpoint)+"/archive", nil).json()["url"].(string)
	f.server.downloads.take("", 1)
	if a := c.do("GET", strings.TrimPrefix(link, f.url), nil); a.status != 503 {
		t.Errorf("one more download: %v", a)
	}
	f.server.downloads.give("", 1)
	for range 3 {
		if a := c.do("GET", strings.TrimPrefix(link, f.url), nil); a.status != 200 {
			t.Errorf("a download: %v", a)
		}
	}
}
