package hub

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
)

// Bounds on what a server may list.
const (
	maxListBytes  = 64 << 20
	maxIndexBytes = 64 << 20
	maxListed     = 100_000
	maxFileBytes  = 1 << 40 // 1 TiB in one file; the largest shards that exist have 50 GB
	maxTotalBytes = 1 << 43
)

// The weights that the engine reads: one file, or the shards that an index names.
const (
	weightsName = "model.safetensors"
	indexName   = "model.safetensors.index.json"
)

// engineFiles are the other files that the engine, or a program that reads the same folder, wants.
var engineFiles = []string{
	"config.json", "generation_config.json",
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
	"tokenizer.model", "vocab.json", "merges.txt",
	"chat_template.jinja", "chat_template.json",
}

// listing is what the hub says about one commit of a model.
type listing struct {
	Commit string `json:"sha"`
	Files  []*struct {
		Path string `json:"rfilename"`
		Size *int64 `json:"size"`
		Blob string `json:"blobId"`
		LFS  *struct {
			SHA256 string `json:"sha256"`
			Size   *int64 `json:"size"`
		} `json:"lfs"`
	} `json:"siblings"`

	name string
}

// list asks for the files of a revision, with sizes and checksums.
func (c *Client) list(ctx context.Context, name, revision string) (*listing, error) {
	u := c.settings.Endpoint.JoinPath("api", "models", name, "revision", url.PathEscape(revision)) // a branch may have a slash in its name
	u.RawQuery = "blobs=true"
	var text []byte
	err := c.attempts(ctx, "the list of files", func() (bool, error) {
		ctx, watch := c.watch(ctx)
		defer watch.stop()
		resp, _, err := c.do(ctx, http.MethodGet, u, nil, place{name: name, revision: revision})
		if err == nil {
			defer resp.Body.Close()
			if text, err = io.ReadAll(io.LimitReader(watch.reader(resp.Body), maxListBytes+1)); err != nil {
				err = transferError(u, err)
			}
		}
		return false, watch.explain(u, err)
	})
	if err != nil {
		return nil, err
	}
	if len(text) > maxListBytes {
		return nil, api.Errorf(api.BadRequest, "%s: the list of files is longer than %s", u.Host, bytesText(maxListBytes))
	}
	l := &listing{name: name}
	if err := json.Unmarshal(text, l); err != nil {
		return nil, api.Errorf(api.BadRequest, "%s: the list of files is not what a hub answers: %w", u.Host, err)
	}
	if !commitText.MatchString(l.Commit) {
		return nil, api.Errorf(api.BadRequest, "%s: the list of files is of commit %q, wanted 40 hexadecimal digits", u.Host, clip(l.Commit))
	}
	if commitText.MatchString(revision) && l.Commit != revision {
		return nil, api.Errorf(api.BadRequest, "%s: the list of files is of commit %s, wanted %s", u.Host, l.Commit, revision)
	}
	if len(l.Files) > maxListed {
		return nil, api.Errorf(api.BadRequest, "%s: lists %d files, wanted at most %d", u.Host, len(l.Files), maxListed)
	}
	return l, nil
}

// has reports whether the listing has a file of that name.
func (l *listing) has(name string) bool { return l.find(name) >= 0 }

func (l *listing) find(name string) int {
	for i, f := range l.Files {
		if f != nil && f.Path == name {
			return i
		}
	}
	return -1
}

// choose picks the files to download. index is not nil when the weights are the shards that it names.
func (l *listing) choose(r Request) (files []*File, index *File, err error) {
	var names []string
	for _, f := range l.Files {
		if f == nil {
			continue
		}
		if strings.Contains(f.Path, "..") || strings.HasPrefix(f.Path, "/") { // nothing of a server that tries this is wanted
			if err := checkPath(f.Path); err != nil {
				return nil, nil, err
			}
		}
		wanted := slices.Contains(engineFiles, f.Path) || f.Path == weightsName || matches(r.Include, f.Path)
		if wanted && !matches(r.Exclude, f.Path) {
			names = append(names, f.Path)
		}
	}
	if !l.has("config.json") {
		hint := "this engine reads base models in the layout of the transformers library"
		if l.has("adapter_config.json") {
			hint = "it has an adapter_config.json: it is an adapter, pull its base model"
		}
		return nil, nil, api.Errorf(api.NotFound, "the repository has no config.json; %s", hint)
	}
	wantIndex := !l.has(weightsName) && l.has(indexName) && !matches(r.Exclude, indexName)
	if !l.has(weightsName) && !l.has(indexName) {
		return nil, nil, api.Errorf(api.NotFound, "the repository has neither %s nor %s%s", weightsName, indexName, l.otherWeights())
	}
	for _, name := range names {
		if name == indexName && wantIndex {
			continue // comes first
		}
		f, err := l.file(name)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	if wantIndex {
		if index, err = l.file(indexName); err != nil {
			return nil, nil, err
		}
		if index.Size > maxIndexBytes {
			return nil, nil, api.Errorf(api.BadRequest, "%s has %d bytes, wanted at most %d", indexName, index.Size, maxIndexBytes)
		}
		files = append(files, index)
	}
	return files, index, nil
}

// otherWeights names weights that cannot be read, for a message.
func (l *listing) otherWeights() string {
	for _, f := range l.Files {
		if f == nil {
			continue
		}
		for _, ending := range []string{".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt"} {
			if strings.HasSuffix(f.Path, ending) {
				return "; it has " + clip(f.Path) + ", a format that is not read here"
			}
		}
	}
	return ""
}

var (
	sha256Text = regexp.MustCompile(`^[0-9a-f]{64}$`)
	sha1Text   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// file checks what the server says of one file.
func (l *listing) file(name string) (*File, error) {
	if err := checkPath(name); err != nil {
		return nil, err
	}
	f := l.Files[l.find(name)]
	x := &File{Path: name, Size: -1}
	if f.Size != nil {
		x.Size = *f.Size
	}
	if f.LFS != nil {
		if f.LFS.Size != nil {
			x.Size = *f.LFS.Size
		}
		if x.SHA256 = f.LFS.SHA256; x.SHA256 != "" && !sha256Text.MatchString(x.SHA256) {
			return nil, api.Errorf(api.BadRequest, "%s: the server's sha256 is %q, wanted 64 hexadecimal digits", name, clip(x.SHA256))
		}
	} else if sha1Text.MatchString(f.Blob) {
		x.GitSHA1 = f.Blob
	}
	if (f.Size != nil || x.Size != -1) && (x.Size < 0 || x.Size > maxFileBytes) {
		return nil, api.Errorf(api.BadRequest, "%s: the server says that it has %d bytes, wanted 0 to %d", name, x.Size, int64(maxFileBytes))
	}
	x.fallback(l.Commit)
	return x, nil
}

// shards reads a verified index and answers the files that it names and that files does not hold yet.
func (l *listing) shards(path string, r Request) ([]*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxIndexBytes))
	if err != nil {
		return nil, err
	}
	var index struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, api.Errorf(api.BadRequest, "%s: %w", indexName, err)
	}
	names := map[string]bool{}
	for _, shard := range index.Map {
		names[shard] = true
	}
	if len(names) == 0 {
		return nil, api.Errorf(api.BadRequest, "%s names no file", indexName)
	}
	var files []*File
	for shard := range names {
		if err := checkPath(shard); err != nil {
			return nil, api.Errorf(api.BadRequest, "%s names a file %q, which is not a name that stays inside the model's folder", indexName, clip(shard))
		}
		if !l.has(shard) {
			return nil, api.Errorf(api.BadRequest, "%s names %q, which the repository does not have", indexName, clip(shard))
		}
		if matches(r.Exclude, shard) || matches(r.Include, shard) { // left out, or chosen already
			continue
		}
		x, err := l.file(shard)
		if err != nil {
			return nil, err
		}
		files = append(files, x)
	}
	slices.SortFunc(files, func(a, b *File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// checkChosen refuses names that are one name on some system, and sums that are absurd.
func checkChosen(files []*File) error {
	seen := map[string]string{}
	total := int64(0)
	for _, x := range files {
		key := strings.ToLower(x.Path)
		if other, ok := seen[key]; ok {
			return api.Errorf(api.BadRequest, "the server lists %q and %q, which are one file on some systems", clip(other), clip(x.Path))
		}
		seen[key] = x.Path
		for dir := key; strings.Contains(dir, "/"); {
			dir = dir[:strings.LastIndexByte(dir, '/')]
			if other, ok := seen[dir]; ok {
				return api.Errorf(api.BadRequest, "the server lists %q as a file and as a folder", clip(other))
			}
		}
		if total += max(0, x.Size); total > maxTotalBytes {
			return api.Errorf(api.BadRequest, "the files have more than %d bytes together, wanted at most that", int64(maxTotalBytes))
		}
	}
	return nil
}

// notes says what the chosen files lack for the engine.
func (l *listing) notes(files []*File) []string {
	have := func(name string) bool {
		return slices.ContainsFunc(files, func(x *File) bool { return x.Path == name })
	}
	var notes []string
	if !have("tokenizer.json") {
		notes = append(notes, "there is no tokenizer.json: the engine cannot turn text into tokens with this model")
	}
	if !have(weightsName) && !have(indexName) {
		notes = append(notes, "the weights were left out: the engine cannot open this folder")
	}
	return notes
}
