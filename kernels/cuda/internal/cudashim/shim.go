//go:build cuda && linux

package cudashim

/*
#cgo CFLAGS: -O2 -Wall -Wextra
#cgo LDFLAGS: -L${SRCDIR}/ldstub -Wl,--as-needed -ldl
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"
)

// LibraryVariable names the environment variable that replaces the search for the driver library by one path.
const LibraryVariable = "TINKER_LOCAL_LIBCUDA"

// Driver is the loaded CUDA driver.
type Driver struct {
	Library  string   // the file that it came from
	Resolved int      // functions found in it
	Missing  []string // functions that it lacks; a call to one answers 500 (NOT_FOUND)
}

// Error says why there is no usable driver.
type Error struct {
	Code   int    // what the driver's cuInit returned; -1 where no driver could be opened
	Reason string // of each library that was tried
}

func (e *Error) Error() string {
	if e.Code < 0 {
		return "no CUDA driver: " + e.Reason
	}
	return fmt.Sprintf("the CUDA driver cannot be used (%d): %s", e.Code, e.Reason)
}

// Load opens and initialises the driver. The first call does the work; every call returns its outcome.
var Load = sync.OnceValues(load)

func load() (Driver, error) {
	// The second is where Windows keeps it for Linux guests.
	candidates := []string{"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"}
	if path := os.Getenv(LibraryVariable); path != "" {
		candidates = []string{path}
	}
	var reasons []string
	for _, name := range candidates {
		driver, code, reason := open(name)
		switch {
		case code == 0:
			return driver, nil
		case code > 0: // a driver is there and says no: another copy of it would say the same
			return Driver{}, &Error{Code: code, Reason: reason}
		}
		reasons = append(reasons, reason)
	}
	return Driver{}, &Error{Code: -1, Reason: strings.Join(reasons, "; ")}
}

func open(name string) (driver Driver, code int, reason string) {
	missing := make([]byte, C.cudashim_symbols())
	text := make([]byte, 1024)
	path := C.CString(name)
	defer C.free(unsafe.Pointer(path))
	code = int(C.cudashim_load(path, (*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text)), (*C.uchar)(&missing[0])))
	said, _, _ := strings.Cut(string(text), "\x00")
	if code != 0 {
		return Driver{}, code, said
	}
	driver.Library = said
	for i, gone := range missing {
		if gone != 0 {
			driver.Missing = append(driver.Missing, C.GoString(C.cudashim_symbol(C.int(i))))
		}
	}
	driver.Resolved = len(missing) - len(driver.Missing)
	return driver, 0, ""
}
