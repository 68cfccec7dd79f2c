package server

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"strings"

	"tinkerlocal/engine"
	"tinkerlocal/engine/api"
)

// KeyPrefix begins every key: the SDK refuses others before it sends them.
const KeyPrefix = "tml-"

// Keys says whose a key is. Keys themselves are not kept, their SHA-256 is. The nil *Keys takes every key that begins with
// KeyPrefix for engine.LocalOwner's.
type Keys struct {
	owners []keyOwner
}

type keyOwner struct {
	sum   [sha256.Size]byte
	owner string
}

// ReadKeys reads a key file: lines of an owner and a key, with space between them. Empty lines and those that begin
// with # are skipped. An owner may have several keys.
func ReadKeys(r io.Reader) (*Keys, error) {
	k := &Keys{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.Fields(line)
		switch {
		case len(words) != 2:
			return nil, api.Errorf(api.BadRequest, "line %d has %d words, wanted an owner and a key", n, len(words))
		case strings.HasPrefix(words[0], KeyPrefix): // not told: it is a key
			return nil, api.Errorf(api.BadRequest, "line %d begins with %s, wanted an owner and then a key", n, KeyPrefix)
		}
		if err := k.Add(words[0], words[1]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(k.owners) == 0 {
		return nil, api.Errorf(api.BadRequest, "there is no key, wanted lines of an owner and a key")
	}
	return k, nil
}

// Add gives an owner a key. The error does not tell the key.
func (k *Keys) Add(owner, key string) error {
	if err := api.CheckName("owner", owner); err != nil {
		return err
	}
	if !strings.HasPrefix(key, KeyPrefix) || len(key) < len(KeyPrefix)+12 {
		return api.Errorf(api.BadRequest, "the key of %s is not one: wanted %s and at least 12 characters", owner, KeyPrefix)
	}
	if _, taken := k.owner(key); taken {
		return api.Errorf(api.BadRequest, "the key of %s is there already", owner)
	}
	k.owners = append(k.owners, keyOwner{sha256.Sum256([]byte(key)), owner})
	return nil
}

// several says whether there is more than one owner.
func (k *Keys) several() bool {
	return k != nil && slices.ContainsFunc(k.owners, func(o keyOwner) bool { return o.owner != k.owners[0].owner })
}

// owner says whose a key is. It takes as long for a wrong key as for a right one.
func (k *Keys) owner(key string) (owner string, ok bool) {
	if k == nil {
		return engine.LocalOwner, strings.HasPrefix(key, KeyPrefix)
	}
	sum := sha256.Sum256([]byte(key))
	for _, o := range k.owners {
		if subtle.ConstantTimeCompare(sum[:], o.sum[:]) == 1 {
			owner, ok = o.owner, true
		}
	}
	return owner, ok
}
