package kernels

import "errors"

// ErrMemory marks an allocation that the device has no room for; test for it with errors.Is. Its
// message says how many bytes were wanted and how many are free.
var ErrMemory = errors.New("out of device memory")

// ErrLost marks a fault after which nothing will run on the device any more; test for it with errors.Is.
var ErrLost = errors.New("device fault")
