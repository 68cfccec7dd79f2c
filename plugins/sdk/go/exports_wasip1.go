package tinkerloss

import "unsafe"

// request is the one buffer that the host fills. Go's memory does not move, and this keeps it.
var request []byte

//go:wasmexport loss_abi_version
func lossABIVersion() int32 { return abiVersion }

//go:wasmexport loss_describe
func lossDescribe() int64 {
	text := plugin.description
	return int64(uintptr(unsafe.Pointer(unsafe.StringData(text))))<<32 | int64(len(text))
}

//go:wasmexport loss_alloc
func lossAlloc(size int32) int32 {
	if size < 0 {
		return 0
	}
	request = nil // a new request replaces the former one
	buf := make([]byte, int(size)+15)
	skip := int(-uintptr(unsafe.Pointer(&buf[0])) & 15)
	request = buf[skip : skip+int(size) : skip+int(size)]
	return int32(uintptr(unsafe.Pointer(unsafe.SliceData(buf))) + uintptr(skip))
}

//go:wasmexport loss_call
func lossCall(req, n int32) int32 {
	if len(request) == 0 || uintptr(req) != uintptr(unsafe.Pointer(&request[0])) || int(n) > len(request) {
		return 3
	}
	return call(request[:n])
}
