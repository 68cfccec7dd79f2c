package plugins

import (
	"fmt"
	"slices"

	"tinkerlocal/engine/api"
)

// abiMajor and abiMinor are the version of ABI.md that this host speaks.
const (
	abiMajor = 1
	abiMinor = 0
)

// ABIVersion is the version of the interface between host and guests, as ABI.md describes it.
func ABIVersion() string { return fmt.Sprintf("%d.%d", abiMajor, abiMinor) }

// Exports of a guest.
const (
	exportMemory     = "memory"
	exportVersion    = "loss_abi_version"
	exportDescribe   = "loss_describe"
	exportAlloc      = "loss_alloc"
	exportCall       = "loss_call"
	exportInitialize = "_initialize"
)

// abiExports are the functions that the host calls.
var abiExports = map[string]struct {
	signature
	optional bool
}{
	exportVersion:    {signature: signature{"", i32}},
	exportDescribe:   {signature: signature{"", i64}},
	exportAlloc:      {signature: signature{i32, i32}},
	exportCall:       {signature: signature{i32 + i32, i32}},
	exportInitialize: {optional: true},
}

// Header of a request. All numbers are u32 but those marked.
const (
	magic      = 0x53534f4c
	headerSize = 128

	offMagic       = 0
	offVersion     = 4
	offTotal       = 8
	offFlags       = 12
	offDatums      = 16
	offColumns     = 20
	offColumnsAt   = 24
	offGroupsAt    = 28
	offParamsAt    = 32
	offParams      = 36
	offConfigAt    = 40
	offConfigLen   = 44
	offWeightsAt   = 48
	offElems       = 52
	offMetricsAt   = 56
	offMetricsCap  = 60
	offErrorAt     = 64
	offErrorCap    = 68
	offBatchDatums = 72
	offGroups      = 76
	offBatchElems  = 80 // u64
	offOutMetrics  = 88 // written by the guest
	offOutError    = 92 // likewise
	offOutLoss     = 96 // f64, likewise
	offBatchGroups = 104
	offChunk       = 108
	offStep        = 112 // u64

	columnSize = 32
	spanSize   = 16
	metricSize = 64
	metricName = 48

	flagEvaluate = 1 // the weights are not needed
	flagPresent  = 1 // of a span

	dtypeFloat = 1
	dtypeInt   = 2
)

// Statuses of loss_call.
const (
	statusOK      = 0
	statusInput   = 1
	statusNumeric = 2
)

// checkABI wants the exports and only the imports of the ABI, and the memory.
func (m *module) checkABI() error {
	for _, i := range m.imports {
		f, known := hostFunctions[i.module][i.name]
		if !known {
			return bad("it imports %q from %q, which the ABI does not offer (see ABI.md, imports)", clip(i.name, 64), clip(i.module, 64))
		}
		var got signature
		if i.typ < uint32(len(m.types)) {
			got = m.types[i.typ]
		}
		if got != f.signature {
			return bad("it imports %s %s as %s, wanted %s", i.module, i.name, got, f.signature)
		}
	}
	if m.memories != 1 {
		return bad("it has no memory")
	}
	for _, name := range sortedNames(abiExports) {
		e := slices.IndexFunc(m.exports, func(e exported) bool { return e.name == name })
		want := abiExports[name]
		switch {
		case e < 0 && want.optional:
			continue
		case e < 0:
			return bad("it does not export %s %s", name, want.signature)
		case m.exports[e].kind != 0:
			return bad("its export %s is a %s, wanted a function", name, kindName(m.exports[e].kind))
		}
		if got, _ := m.typeOf(m.exports[e].index); got != want.signature {
			return bad("its export %s is %s, wanted %s", name, got, want.signature)
		}
	}
	if !slices.ContainsFunc(m.exports, func(e exported) bool { return e.name == exportMemory && e.kind == 2 }) {
		return bad("it does not export its memory as %q", exportMemory)
	}
	return nil
}

// checkVersion wants the host's major version and a minor that it knows.
func checkVersion(v uint32) error {
	if v>>16 != abiMajor || v&0xffff > abiMinor {
		return bad("it speaks version %d.%d of the ABI, this host %s", v>>16, v&0xffff, ABIVersion())
	}
	return nil
}

func bad(format string, args ...any) error { return api.Errorf(api.BadRequest, format, args...) }
