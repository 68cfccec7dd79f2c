package interchange

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tinkerlocal/engine/api"
	"tinkerlocal/engine/hf"
)

// mergedManifest is the file of an export that says what made it, and which files it consists of. A folder is replaced only if
// the list of its files is there and nothing else is.
const mergedManifest = "tinker_local_merge.json"

// smallFile is a file that is not weights. Contents that are the base's are read again when they are written.
type smallFile struct {
	name  string
	text  []byte // nil: the base's file of this name
	bytes int64
	sum   string // SHA-256, in hexadecimal
}

type manifest struct {
	Format    int                     `json:"format"`
	BaseModel string                  `json:"base_model"`
	Rank      int                     `json:"rank"`
	Scale     float64                 `json:"scale"`
	DType     string                  `json:"dtype"`
	Files     map[string]manifestFile `json:"files"`
}

// manifestFile is a file's size and, except for weights, its SHA-256.
type manifestFile struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
}

// planFiles plans the files that are not weights, and adds all sizes up.
func (m *merged) planFiles() error {
	config, err := m.config()
	if err != nil {
		return err
	}
	m.addSmall(mergedConfig, config)
	names, passed, err := m.base.Others()
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == mergedConfig || name == mergedManifest {
			continue
		}
		text, err := m.base.File(name)
		if err != nil {
			return err
		}
		f := newSmall(name, text)
		f.text = nil
		m.small = append(m.small, f)
	}
	if len(passed) > 0 {
		m.note("Of the base's folder is not copied: %s.", strings.Join(passed, "; "))
	}
	if slices.Contains(names, "README.md") {
		m.note("README.md is the base's own.")
	}
	if len(m.shards) > 1 || m.shards[0].file != mergedWeights {
		text, err := m.index()
		if err != nil {
			return err
		}
		m.addSmall(mergedIndex, text)
	}
	return m.planManifest()
}

func (m *merged) planManifest() error {
	dtype := "base"
	if m.o.DType != 0 {
		dtype = storedName[m.o.DType]
	}
	list := manifest{Format: 1, BaseModel: m.a.BaseModel, Rank: m.a.Lora.Rank, Scale: m.a.Scale, DType: dtype, Files: map[string]manifestFile{}}
	for _, f := range m.small {
		list.Files[f.name] = manifestFile{f.bytes, f.sum}
		m.bytes += f.bytes
	}
	for _, s := range m.shards {
		if _, twice := list.Files[s.file]; twice {
			return api.Errorf(api.BadRequest, "the base's file %q is both weights and not", s.file)
		}
		list.Files[s.file] = manifestFile{Bytes: s.bytes}
	}
	text, err := jsonText(list)
	if err != nil {
		return err
	}
	m.addSmall(mergedManifest, text)
	m.bytes += int64(len(text)) + m.weightBytes
	return nil
}

func (m *merged) addSmall(name string, text []byte) { m.small = append(m.small, newSmall(name, text)) }

func newSmall(name string, text []byte) smallFile {
	sum := sha256.Sum256(text)
	return smallFile{name, text, int64(len(text)), hex.EncodeToString(sum[:])}
}

// contents returns what is to be written.
func (f *smallFile) contents(base *hf.Checkpoint) ([]byte, error) {
	if f.text != nil {
		return f.text, nil
	}
	text, err := base.File(f.name)
	if err == nil && newSmall(f.name, text).sum != f.sum {
		err = api.Errorf(api.BadRequest, "the base's file %q has changed since the export was planned", f.name)
	}
	return text, err
}

// index is model.safetensors.index.json.
func (m *merged) index() ([]byte, error) {
	x := struct {
		Metadata struct {
			TotalSize int64 `json:"total_size"`
		} `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}{WeightMap: map[string]string{}}
	for name, t := range m.tensors {
		size := int64(len(t.from.Data))
		if t.dtype != t.from.DType {
			size = int64(t.from.Len()) * int64(t.dtype.Size())
		}
		x.Metadata.TotalSize += size
		x.WeightMap[name] = t.from.File
	}
	return jsonText(x)
}

func jsonText(v any) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return text.Bytes(), err
}

// config is the base's config.json with what the merge changes; the rest of the text stays as it is.
func (m *merged) config() ([]byte, error) {
	text := slices.Clone([]byte(m.base.Config.Raw))
	set := map[string]string{}
	if m.ownHead {
		set["tie_word_embeddings"] = "false"
	}
	if m.o.DType != 0 {
		name := fmt.Sprintf("%q", m.o.DType) // float32 or bfloat16, as torch says it, too
		_, _, newer, err := findMember(text, "dtype")
		if err != nil {
			return nil, err
		}
		_, _, older, err := findMember(text, "torch_dtype")
		if err != nil {
			return nil, err
		}
		if newer {
			set["dtype"] = name
		}
		if older || !newer { // every version of transformers reads the older one
			set["torch_dtype"] = name
		}
	}
	for _, key := range []string{"tie_word_embeddings", "dtype", "torch_dtype"} {
		if value, ok := set[key]; ok {
			var err error
			if text, err = setMember(text, key, value); err != nil {
				return nil, err
			}
		}
	}
	c, err := hf.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s of the merged model: %w", mergedConfig, err)
	}
	if m.ownHead && c.TieWordEmbeddings {
		return nil, api.Errorf(api.Internal, "%s of the merged model still ties the embeddings", mergedConfig)
	}
	return text, nil
}

// setMember sets a member of the JSON object text, which has one already or gets one. In "text_config", where models of several parts
// keep the decoder's fields, it is set if it is there.
func setMember(text []byte, key, value string) ([]byte, error) {
	from, to, there, err := findMember(text, key)
	if err != nil {
		return nil, err
	}
	if there {
		text = slices.Concat(text[:from], []byte(value), text[to:])
	} else {
		at := bytes.IndexByte(text, '{') + 1
		text = slices.Concat(text[:at], fmt.Appendf(nil, "\n  %q: %s,", key, value), text[at:])
	}
	from, to, there, err = findMember(text, "text_config")
	if err != nil || !there {
		return text, err
	}
	inner := text[from:to]
	if _, _, there, err := findMember(inner, key); err != nil || !there {
		return text, err
	}
	if inner, err = setMember(inner, key, value); err != nil {
		return nil, err
	}
	return slices.Concat(text[:from], inner, text[to:]), nil
}

// findMember finds the bytes of a member's value in a JSON object.
func findMember(text []byte, key string) (from, to int, there bool, err error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if _, err = dec.Token(); err != nil {
		return 0, 0, false, err
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return 0, 0, false, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return 0, 0, false, err
		}
		if name == key {
			to := int(dec.InputOffset())
			return to - len(value), to, true, nil
		}
	}
	return 0, 0, false, nil
}

// mayReplace says whether the folder path, which holds these names, is an export of ours that nobody has added to or changed: every
// file in it is in its manifest, has the size that stands there, and, except for weights, the same bytes.
func (m *merged) mayReplace(path string, replace bool) func(names []string) error {
	return func(names []string) error {
		switch {
		case len(names) == 0:
			return nil
		case sameFolder(path, m.base.Name): // it may be an export, too
			return api.Errorf(api.BadRequest, "it is the base's own folder")
		case !slices.Contains(names, mergedManifest):
			return api.Errorf(api.BadRequest, "the folder holds %q and no %s; wanted a new folder, an empty one, or a merged model exported earlier", names[0], mergedManifest)
		case !replace:
			return api.Errorf(api.BadRequest, "it is there already")
		}
		list, err := readManifest(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			if name == mergedManifest {
				continue
			}
			if why := list.owns(path, name); why != "" {
				return api.Errorf(api.BadRequest, "the folder is not replaced: %q in it %s", name, why)
			}
		}
		return nil
	}
}

func sameFolder(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

const maxManifest = 16 << 20

func readManifest(path string) (*manifest, error) {
	name := filepath.Join(path, mergedManifest)
	st, err := os.Lstat(name)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxManifest {
		return nil, api.Errorf(api.BadRequest, "the folder is not replaced: its %s is not one of ours", mergedManifest)
	}
	text, err := os.ReadFile(name)
	list := &manifest{}
	if err == nil {
		err = json.Unmarshal(text, list)
	}
	if err != nil || list.Format != 1 {
		return nil, api.Errorf(api.BadRequest, "the folder is not replaced: its %s is not one of ours", mergedManifest)
	}
	return list, nil
}

// owns says why a file is not the export's, or "".
func (l *manifest) owns(path, name string) string {
	f, ok := l.Files[name]
	if !ok {
		return "is not part of the export"
	}
	st, err := os.Lstat(filepath.Join(path, name))
	switch {
	case err != nil:
		return "cannot be looked at"
	case st.Mode()&fs.ModeType != 0:
		return "is no longer a plain file"
	case st.Size() != f.Bytes:
		return "has been changed"
	case f.SHA256 == "":
		return ""
	}
	text, err := os.ReadFile(filepath.Join(path, name))
	if err != nil || newSmall(name, text).sum != f.SHA256 {
		return "has been changed"
	}
	return ""
}
