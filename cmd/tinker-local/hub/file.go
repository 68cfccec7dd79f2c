package hub

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"

	"tinkerlocal/engine/api"
)

// File is one file of a model, as the server describes it.
type File struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`               // -1: not known
	SHA256  string `json:"sha256,omitempty"`   // of the contents
	GitSHA1 string `json:"git_sha1,omitempty"` // of the contents as a git blob

	stand string // stands for the checksum in names of parts, when there is none
}

// sum is the checksum, in words; "" when there is none.
func (x *File) sum() string {
	switch {
	case x.SHA256 != "":
		return "sha256 " + x.SHA256
	case x.GitSHA1 != "":
		return "git sha1 " + x.GitSHA1
	}
	return ""
}

// id names the contents: parts are kept under it, so that a part never grows with another file's bytes.
func (x *File) id() string {
	switch {
	case x.SHA256 != "":
		return x.SHA256
	case x.GitSHA1 != "":
		return x.GitSHA1
	}
	return x.stand
}

// fallback sets the id of a file without a checksum: the same path of another commit is another file.
func (x *File) fallback(commit string) {
	sum := sha256.Sum256([]byte(commit + "/" + x.Path))
	x.stand = "path-" + hex.EncodeToString(sum[:20])
}

// digest returns the hash of x's kind, or nil when it cannot be computed while the file comes in.
func (x *File) digest() hash.Hash {
	switch {
	case x.SHA256 != "":
		return sha256.New()
	case x.GitSHA1 != "" && x.Size >= 0: // a git blob's hash begins with its size
		h := sha1.New()
		fmt.Fprintf(h, "blob %d\x00", x.Size)
		return h
	}
	return nil
}

// check compares a finished hash with the checksum.
func (x *File) check(h hash.Hash) error {
	got := hex.EncodeToString(h.Sum(nil))
	if want := x.id(); got != want {
		return &checksumError{x.Path, want, got}
	}
	return nil
}

// checkFile reads the file at path and compares size and checksum.
func (x *File) checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if x.Size >= 0 && st.Size() != x.Size {
		return api.Errorf(api.BadRequest, "%s has %d bytes, wanted %d", x.Path, st.Size(), x.Size)
	}
	sized := *x
	sized.Size = st.Size()
	h := sized.digest()
	if h == nil {
		return nil
	}
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	return x.check(h)
}

// checksumError says that a whole file has the wrong contents.
type checksumError struct{ path, want, got string }

func (e *checksumError) Error() string {
	return fmt.Sprintf("%s: the checksum is %s, wanted %s; the file was thrown away", e.path, e.got, e.want)
}
