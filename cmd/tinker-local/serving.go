package main

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/cmd/tinker-local/server/remote"
	"tinkerlocal/engine/api"
	"tinkerlocal/engine/disk"
	"tinkerlocal/engine/local"
)

// serving says where the server of a state directory is, and how this program's other commands reach it. It is kept in the
// state directory as long as the server runs, for its user's eyes only.
type serving struct {
	remote.Address
	PID     int    `json:"pid"`
	Version string `json:"version"` // of the program

	file   string
	secret []byte
}

const (
	servingFile = "server.json"
	secretFile  = "server.secret"
)

// announce writes down where the server is. Its secret is made once for a state directory, so that ids and links outlive the server.
func (a *app) announce(at net.Addr, certificate *tls.Config) (*serving, error) {
	s := &serving{
		Address: remote.Address{URL: urlOf(at, certificate != nil), Key: server.KeyPrefix + rand.Text(), Protocol: remote.Protocol},
		PID:     os.Getpid(), Version: buildVersion().Version,
	}
	if certificate != nil {
		s.Certificate = remote.Fingerprint(certificate.Certificates[0].Certificate[0])
	}
	if a.state == "" {
		return s, nil
	}
	var err error
	if s.secret, err = secret(filepath.Join(a.state, secretFile)); err != nil {
		return nil, err
	}
	s.file = filepath.Join(a.state, servingFile)
	return s, private(s.file, func(w io.Writer) error { return json.NewEncoder(w).Encode(s) })
}

// private writes a small file that only its user may read.
func private(name string, write func(io.Writer) error) error {
	temp, err := os.CreateTemp(filepath.Dir(name), ".server-*") // mode 0600
	if err == nil {
		defer os.Remove(temp.Name())
		err = errors.Join(write(temp), temp.Sync(), temp.Close())
	}
	if err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err == nil {
		err = disk.SyncDir(filepath.Dir(name))
	}
	if err != nil {
		return api.Errorf(api.BadRequest, "write %s: %w", name, err)
	}
	return nil
}

func secret(name string) ([]byte, error) {
	const n = 32
	b, err := os.ReadFile(name)
	switch {
	case err == nil && len(b) == n:
		return b, nil
	case err == nil:
		return nil, api.Errorf(api.DataLoss, "%s has %d bytes, wanted %d: remove it to have a new one; clients then start anew", name, len(b), n)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, api.Errorf(api.BadRequest, "%w", err)
	}
	b = make([]byte, n)
	rand.Read(b) // never fails
	return b, private(name, func(w io.Writer) error { _, err := w.Write(b); return err })
}

func (s *serving) remove() {
	if s.file != "" {
		os.Remove(s.file)
	}
}

// served finds the server that has the state directory open; nil: none has. What a server that died has left behind is not
// believed: the process that has the directory open is another one.
func (a *app) served() (*serving, error) {
	if a.state == "" {
		return nil, nil
	}
	name := filepath.Join(a.state, servingFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "%w", err)
	}
	s := &serving{file: name}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, api.Errorf(api.DataLoss, "%s: %w", name, err)
	}
	if owner := local.StateOwner(a.state); owner != 0 && owner != s.PID {
		return nil, nil
	}
	return s, nil
}

// failed says why the server's store cannot be used.
func (s *serving) failed(state string, err error) error {
	return &api.Error{Code: api.CodeOf(err), Msg: fmt.Sprintf("state directory %s is served by process %d (tinker-local %s): %v", state, s.PID, s.Version, err), Err: err}
}
