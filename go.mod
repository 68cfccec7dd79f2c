module tinkerlocal

go 1.26.0

require (
	github.com/dgraph-io/badger/v4 v4.9.6 // store: the embedded database of checkpoints and run records
	github.com/dlclark/regexp2 v1.12.0 // engine/token: tokenizer.json splitting patterns need look-ahead, which package regexp lacks
	github.com/guptarohit/asciigraph v0.10.0 // loss curve in the terminal
	github.com/jedib0t/go-pretty/v6 v6.8.3 // tables of the model commands
	github.com/klauspost/compress v1.20.3 // store, engine/interchange, cmd/tinker-local/server/wire: zstd of checkpoints, archives and requests
	github.com/mmcloughlin/avo v0.5.0 // writes the AVX2 kernels at go generate
	github.com/schollz/progressbar/v3 v3.19.1 // progress bar of long commands
	github.com/spf13/cobra v1.10.2 // commands, flags, help
	github.com/spf13/pflag v1.0.9 // cobra's flags by their type: train --resume keeps those that were given
	github.com/tetratelabs/wazero v1.12.0 // plugins: runs custom losses in a sandbox, pure Go
	golang.org/x/image v0.47.0 // loss curve as PNG: letters and smooth lines
	golang.org/x/sys v0.49.0 // mapping weight files; CPU features; locks, free space of disks
	golang.org/x/term v0.47.0 // line editing of chat; width of the terminal
	golang.org/x/text v0.43.0 // engine/token: canonical decompositions and combining classes for NFC
	google.golang.org/protobuf v1.36.7 // cmd/tinker-local/server/wire: protobuf messages of the official SDK (encoding/protowire)
	gorgonia.org/cu v0.9.6 // kernels/cuda: the CUDA driver, in builds with the tag cuda
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/dgraph-io/ristretto/v2 v2.2.0 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/go-logr/logr v1.4.3 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/google/flatbuffers v25.2.10+incompatible // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/mattn/go-runewidth v0.0.16 // indirect
	github.com/mitchellh/colorstring v0.0.0-20190213212951-d06e56a500db // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/rivo/uniseg v0.4.7 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel v1.41.0 // indirect
	go.opentelemetry.io/otel/metric v1.41.0 // indirect
	go.opentelemetry.io/otel/trace v1.41.0 // indirect
	golang.org/x/mod v0.41.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/tools v0.51.0 // indirect
)
