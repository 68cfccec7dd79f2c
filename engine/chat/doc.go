// Package chat turns conversations into a model's text and a model's text back into messages.
//
// Each chat format has one file. A [Format] renders messages into [Segment]s: literal text, the
// tokens that mark turns, and for each whether a loss is taken there. [Tokens] makes ids of them with
// any tokenizer that has the methods of engine/token's. [Format.Parse] reads a sampled reply.
//
// The text is the one that the model's publisher writes: for every conversation of testdata it equals
// what the published Jinja template gives in the transformers library, byte for byte. There is no
// Jinja here. Where a template writes something senseless without saying so (an unknown role is left
// out, a list of parts becomes Python's spelling of it), Render returns an error.
//
// What is trained follows the official cookbook (thinking-machines-lab/tinker-cookbook,
// tinker_cookbook/renderers/base.py, TrainOnWhat and RenderedMessage): a turn has a header, which the
// prompt supplies, and an output, which the model makes and which ends with the token that stops it.
package chat
