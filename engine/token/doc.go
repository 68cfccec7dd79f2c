// Package token turns text into token ids and back, exactly as the Hugging Face tokenizers library
// does, from the model's own tokenizer.json.
//
// Supported are byte-pair models whose pre-tokenizer ends in ByteLevel (the GPT-2, Llama 3, Qwen and
// gpt-oss shapes, also with no merges at all), and those converted from SentencePiece, with byte
// fallback (the Llama 2, Mistral and Gemma shapes). A file that asks for anything else (a model, normaliser,
// split behaviour, decoder or option that is not implemented) is refused by Parse with an error that
// names it: wrong ids are worse than no ids.
//
// Unicode tables are pinned: character classes are those of the reference library's regular
// expression engine (Unicode 16.0, classes.bin), and NFC knows no combining character newer than the
// reference's normaliser does (nfc.go). A newer Go release therefore does not change any id.
package token
