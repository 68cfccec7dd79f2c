/* tinker.h: libtinker, the C interface of tinker-local.
 *
 * Fine-tune language models with LoRA and sample from them, inside your own program. This header is the manual; what
 * the words mean and how the engine works is in docs/architecture.md, a first program in docs/c.md and examples/c.
 *
 *     tinker_engine -> tinker_session -> tinker_run, tinker_sampler      an arrow: makes
 *     tinker_batch (data) + tinker_run -> tinker_future -> results
 *
 * RULES THAT HOLD FOR EVERY FUNCTION
 *
 * Status.   A function that can fail returns a tinker_status and writes its outputs last: on anything but TINKER_OK they
 *           are as they were, except that a char ** or array output may have been set to NULL. tinker_last_error() says
 *           in words what was wrong with this thread's last call.
 * Handles.  tinker_engine * and the like are names, not addresses: never follow or compute with one. NULL, a handle of
 *           another type, one that was freed, or any other value gives TINKER_ERR_HANDLE. Each handle is yours: free it with the
 *           function its typedef names. X_free(NULL) does nothing. A child keeps its parent alive, so free in any
 *           order; when the last handle of something has gone, it ends. Freeing twice gives TINKER_ERR_HANDLE.
 * Pointers. Inputs are borrowed for the call: they are copied before it returns. An output is either "owned by you, free
 *           with tinker_free" or "valid until X": then it is the library's, and read-only.
 * Strings.  NUL-terminated UTF-8. At most 64 KiB, JSON at most 64 MiB.
 * Counts.   int64_t. A NULL array is allowed where its count is 0.
 * Structs.  What you fill in begins with struct_size and has an _INIT macro that holds every default; other values are meant as
 *           written. Fields are only ever appended: a struct of an older header is taken with the defaults of the fields
 *           that it lacks, one of a newer header only if the fields unknown here are zero. A NULL struct means all defaults.
 *           Structs that the library fills in begin with struct_size as well: fields beyond it are not there.
 * Threads.  Any function with any handle from any thread at the same time. Operations of one run are executed in
 *           the order in which they were submitted. Only functions that say so block, and then this thread alone. The datums of
 *           a batch are in order only if one thread at a time adds them.
 * Futures.  What takes long is submitted and answers with a tinker_future: wait for it or poll it, read its result, free
 *           it. Nothing ever calls back into your program.
 * fork.     In a child of fork() every call returns TINKER_ERR_FORKED (the threads are not there). exec is fine. Start
 *           processes before the first call, or with posix_spawn; in Python use multiprocessing's "spawn".
 * Signals.  Loading the library starts a Go runtime. It installs signal handlers (SA_ONSTACK; those that were there are called for faults
 *           outside Go code; SIGURG and SIGPROF are its own use), and cannot be unloaded: dlclose does nothing.
 * Memory.   What the library allocates for you is freed with the function named here, never with free().
 *
 * Errors any function may return besides those it names: TINKER_ERR_BAD_REQUEST (an argument is wrong; the message says which, what
 * was wanted and what came), TINKER_ERR_HANDLE, TINKER_ERR_CLOSED (the engine, session, run or sampler was closed), TINKER_ERR_DEVICE_LOST,
 * TINKER_ERR_FORKED, TINKER_ERR_INTERNAL (a defect of the library; please report it).
 *
 * Versions: "since" is the version that has a function first. Before 1.0 anything may change between minor versions.
 */
#ifndef TINKER_H
#define TINKER_H

#include <stdint.h>

#if UINTPTR_MAX < 0xffffffffffffffff
#error "libtinker needs 64-bit pointers"
#endif

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TINKER_API __attribute__((visibility("default")))
#else
#define TINKER_API
#endif

#define TINKER_VERSION_MAJOR 0
#define TINKER_VERSION_MINOR 1
#define TINKER_VERSION_PATCH 0

/* ---- Status ------------------------------------------------------------------------------------------------------ */

typedef int32_t tinker_status;

enum {
  TINKER_OK = 0,
  TINKER_ERR_BAD_REQUEST = 1,   /* an argument or input is wrong */
  TINKER_ERR_NOT_FOUND = 2,     /* no such model, checkpoint, run or file */
  TINKER_ERR_UNSUPPORTED = 3,   /* understood, but this build or device does not do it */
  TINKER_ERR_OUT_OF_MEMORY = 4, /* of the device; needed and free bytes are in the message */
  TINKER_ERR_STALE = 5,         /* the weights that it belongs to have changed */
  TINKER_ERR_CANCELLED = 6,     /* dropped before it started */
  TINKER_ERR_CLOSED = 7,        /* engine, session, run or sampler is closed */
  TINKER_ERR_BUSY = 8,          /* a limit is reached; try again later */
  TINKER_ERR_DEVICE_LOST = 9,   /* the device failed; nothing more will run on it */
  TINKER_ERR_NO_SPACE = 10,     /* on the disk; needed and free bytes are in the message */
  TINKER_ERR_DATA_LOSS = 11,    /* what was stored is damaged */
  TINKER_ERR_INTERNAL = 12,     /* a defect of the library */
  TINKER_ERR_HANDLE = 13,       /* not a live handle of the type wanted */
  TINKER_ERR_FORKED = 14,       /* the process is a child of fork() */
  TINKER_PENDING = 15,          /* no failure: it has not ended yet */
  TINKER_END = 16               /* no failure: nothing more comes */
};

/* The name of a status, such as "TINKER_ERR_BUSY"; "unknown status" for other numbers. Static. since: 0.1 */
TINKER_API const char *tinker_status_name(tinker_status status);

/* What was wrong with this thread's last call, for people; "" if it succeeded. Valid until this thread's next tinker
 * call, except those of this section. since: 0.1 */
TINKER_API const char *tinker_last_error(void);

/* Version of the library, such as "0.1.0"; compare it with the macros above. Static. since: 0.1 */
TINKER_API const char *tinker_version(void);

/* Frees what a function said is owned by you and freed with tinker_free. NULL does nothing; in a child of fork() it does
 * nothing either. since: 0.1 */
TINKER_API void tinker_free(void *memory);

/* What is alive, as JSON, to find leaks: {"handles": {"engine": 1, ...}, "memory": {"blocks": 2, "bytes": 640}}. Memory is what
 * was handed out and not freed, without the JSON text itself. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_debug_counts(char **json);

/* The folders that the command line uses: {"models": ..., "state": ..., "hub_cache": ...}, "" for those that cannot be
 * known. They need not exist. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_default_folders(char **json);

/* ---- Handles ----------------------------------------------------------------------------------------------------- */

typedef struct tinker_engine tinker_engine;       /* a device and all that is on it: tinker_engine_free */
typedef struct tinker_tokenizer tinker_tokenizer; /* text to token ids and back: tinker_tokenizer_free */
typedef struct tinker_decoder tinker_decoder;     /* token ids to text as they come: tinker_decoder_free */
typedef struct tinker_session tinker_session;     /* what one client opens: tinker_session_free */
typedef struct tinker_run tinker_run;             /* one adapter in training: tinker_run_free */
typedef struct tinker_sampler tinker_sampler;     /* a model to sample from: tinker_sampler_free */
typedef struct tinker_batch tinker_batch;         /* training data: tinker_batch_free */
typedef struct tinker_module tinker_module;       /* a custom loss: tinker_module_free */
typedef struct tinker_held tinker_held;           /* a forward that waits for its backward: tinker_held_free */
typedef struct tinker_stream tinker_stream;       /* tokens as they are drawn: tinker_stream_free */
typedef struct tinker_future tinker_future;       /* the result of one operation: tinker_future_free */

/* A name with a number: a loss's configuration, a metric. */
typedef struct tinker_pair {
  const char *name;
  double value;
} tinker_pair;

/* ---- Engine ------------------------------------------------------------------------------------------------------ */

/* Bounds of an engine. 0 is the default: engine/limits.go has them with their reasons, tinker_engine_info those in force. */
typedef struct tinker_limits {
  uint32_t struct_size;
  uint32_t reserved; /* 0 */
  int64_t memory_bytes;
  int64_t micro_batch_tokens;
  int64_t prefill_tokens;
  int64_t decode_sequences;
  int64_t kv_positions;
  int64_t runs;
  int64_t queued_ops;
  int64_t datums_per_op;
  int64_t tokens_per_op;
  int64_t sample_requests;
  int64_t samples_per_request;
  int64_t topk_prompt_logprobs;
  int64_t stop_strings;
  int64_t stop_bytes;
  int64_t loss_ms;
  int64_t hold_ms;
  int64_t holds;
  int64_t kept_forwards; /* of a run, whose activations wait for a backward of the same batch; -1: none */
} tinker_limits;
#define TINKER_LIMITS_INIT {sizeof(tinker_limits), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

enum { TINKER_LOG_DEBUG = -4, TINKER_LOG_INFO = 0, TINKER_LOG_WARN = 4, TINKER_LOG_ERROR = 8 };

typedef struct tinker_engine_options {
  uint32_t struct_size;
  int32_t log_fd;         /* lines of text go there; it is duplicated, yours stays yours. 0: nothing is logged */
  int32_t log_level;      /* TINKER_LOG_... */
  uint32_t reserved;      /* 0 */
  const char *device;     /* NULL or "auto", "cpu", "cpu:portable" (slow, for tests), "cuda", "cuda:N" */
  const char *dtype;      /* how base weights are kept: NULL or "auto", "float32", "bfloat16" */
  const char *models;     /* folder of ORG/NAME model folders; NULL: only the embedded model and folders by their path */
  const char *state;      /* folder for checkpoints, made if it is not there; NULL: they are kept in memory */
  const char *hub_cache;  /* cache of Hugging Face programs, also a source of models; NULL: not looked into */
  const tinker_limits *limits;
} tinker_engine_options;
#define TINKER_ENGINE_OPTIONS_INIT {sizeof(tinker_engine_options), 0, TINKER_LOG_INFO, 0, 0, 0, 0, 0, 0, 0}

/* Opens an engine. Models are loaded when they are first used. Any number of engines may be open; a state folder has one
 * process and one engine at a time. Blocks while the state folder is opened.
 * Errors: UNSUPPORTED (device), BUSY (the state folder is in use), DATA_LOSS. since: 0.1 */
TINKER_API tinker_status tinker_engine_open(const tinker_engine_options *options, tinker_engine **engine);

/* Ends everything on the engine now: what waits or runs fails with TINKER_ERR_CLOSED, device memory is freed, the
 * state folder is released. Blocks until then. Handles stay valid, and are freed as ever. Twice does nothing. since: 0.1 */
TINKER_API tinker_status tinker_engine_close(tinker_engine *engine);

/* Gives the handle up. When nothing made from the engine is left either, it closes as with tinker_engine_close, in the call that
 * frees the last handle. since: 0.1 */
TINKER_API tinker_status tinker_engine_free(tinker_engine *engine);

/* The device, limits and loaded models, as JSON: {"version", "device": {"name", "kind", "variant", "dtype", "threads", "memory_bytes",
 * "free_bytes"}, "limits": {...}, "bases": {NAME: {counters}}, "process": {"heap_bytes", "goroutines"}, "loading": {"model", "done", "total"}}.
 * memory_bytes and free_bytes are as they were at open; loading is null unless a model is being loaded, and counts
 * parameters. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_engine_info(tinker_engine *engine, char **json);

/* {"supported_models": [{"model_name", "max_context_length"}]}, as the HTTP route get_server_capabilities.
 * *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_engine_capabilities(tinker_engine *engine, char **json);

/* Every model that can be opened, and folders that look like one and cannot ("problem" says why), as a JSON array of the
 * objects of tinker_model_info. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_engine_models(tinker_engine *engine, char **json);

/* The custom losses that can be named as "wasm:NAME": those that come with the library and those in the plugins folder of the state folder, with their
 * inputs and parameters, as a JSON array. Each is compiled for it: the first call takes a while. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_engine_plugins(tinker_engine *engine, char **json);

/* Facts about one model, from its files; no weight is read: family, parameters, sizes, context, training type, and "needs", the device
 * memory for sampling and training. name: "tinker-local/tiny" (embedded), ORG/NAME, or the path of a folder.
 * *json is owned by you, free with tinker_free. Errors: NOT_FOUND. since: 0.1 */
TINKER_API tinker_status tinker_model_info(tinker_engine *engine, const char *name, char **json);

/* ---- Text -------------------------------------------------------------------------------------------------------- */

/* Reads a model's tokenizer; no weight is read. Errors: NOT_FOUND, UNSUPPORTED. since: 0.1 */
TINKER_API tinker_status tinker_tokenizer_open(tinker_engine *engine, const char *model, tinker_tokenizer **tokenizer);
/* Gives the handle up. since: 0.1 */
TINKER_API tinker_status tinker_tokenizer_free(tinker_tokenizer *tokenizer);

/* {"model", "size", "eos_token_ids", "bos_token", "eos_token", "has_chat_template", "chat_format", "chat_formats"}: size is one more
 * than the largest id; chat_format is what fits the model, "" if none is known to; chat_formats are all that can be asked for.
 * *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_tokenizer_info(tinker_tokenizer *tokenizer, char **json);

/* Text to ids. text: bytes of UTF-8, which need not end in NUL; at most 64 MiB. special not 0: with the tokens that the tokenizer puts around a text.
 * *ids [*count] is owned by you, free with tinker_free; it is never NULL. since: 0.1 */
TINKER_API tinker_status tinker_tokenizer_encode(tinker_tokenizer *tokenizer, const char *text, int64_t bytes, int32_t special,
                                                 int32_t **ids, int64_t *count);

/* Ids to text. skip_special not 0: without special tokens. Unknown ids give nothing. *text is NUL-terminated; *bytes, which may be
 * NULL, is its length without that. *text is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_tokenizer_decode(tinker_tokenizer *tokenizer, const int32_t *ids, int64_t count, int32_t skip_special,
                                                 char **text, int64_t *bytes);

/* The id of a token by its name, such as "<|im_end|>". Errors: NOT_FOUND. since: 0.1 */
TINKER_API tinker_status tinker_tokenizer_id(tinker_tokenizer *tokenizer, const char *token, int32_t *id);

/* A decoder turns tokens into text as they are drawn: whole characters only, the pieces joined are the text that
 * tinker_tokenizer_decode gives. One thread at a time. since: 0.1 */
TINKER_API tinker_status tinker_decoder_open(tinker_tokenizer *tokenizer, int32_t skip_special, tinker_decoder **decoder);
/* Gives the handle up. since: 0.1 */
TINKER_API tinker_status tinker_decoder_free(tinker_decoder *decoder);

/* Adds ids and gives the text that has become certain, maybe "". last not 0: also what is left, and the decoder is as
 * new. *text is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_decoder_push(tinker_decoder *decoder, const int32_t *ids, int64_t count, int32_t last, char **text);

/* Renders a conversation. request is JSON:
 *   {"messages": [{"role", "content", ...}, ...]   as in the chat completions API, with tool_calls and reasoning_content
 *    "tools": [...], "format": "qwen3",            default: the model's own
 *    "generate": true, "prefill": "...",           end with an open turn of the assistant, and what it begins with
 *    "train_on": "all_assistant_messages",         or another word of engine/chat TrainOn; default: nothing is trained
 *    "no_thinking", "keep_thinking", "tools_in_system", "allow_control": true, "date": "26 Jul 2024"}
 * *ids [*count] are the tokens. *trained [*count], which may be NULL when nobody wants it, is 1 where a loss is to be taken.
 * *json is {"format", "text", "stop_tokens": [ids], "stop": [texts]}; json may be NULL. ids, trained and json are owned by you,
 * free with tinker_free. Errors: UNSUPPORTED (no known format). since: 0.1 */
TINKER_API tinker_status tinker_chat_render(tinker_tokenizer *tokenizer, const char *request, int32_t **ids, uint8_t **trained, int64_t *count,
                                            char **json);

/* Reads a sampled reply. request: {"format", "tools", "prefill", "no_thinking", ...} as it was rendered; messages are ignored. text: the
 * reply decoded with special tokens, with the prefill, up to and with what ended it. *json is {"message", "end": "stop_sequence" | "eos" |
 * "malformed", "problems": [{"raw", "why"}]}, owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_chat_parse(tinker_tokenizer *tokenizer, const char *request, const char *text, char **json);

/* ---- Sessions ---------------------------------------------------------------------------------------------------- */

/* Opens a session. owner owns the checkpoints that its runs save and is who reads others'; NULL: "local". since: 0.1 */
TINKER_API tinker_status tinker_session_open(tinker_engine *engine, const char *owner, tinker_session **session);
/* Closes its runs and samplers now; handles are freed as ever. since: 0.1 */
TINKER_API tinker_status tinker_session_close(tinker_session *session);
/* Gives the handle up. A session whose last handle, run and sampler have gone is closed. since: 0.1 */
TINKER_API tinker_status tinker_session_free(tinker_session *session);
/* {"session_id", "owner", "training_run_ids"}. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_session_info(tinker_session *session, char **json);

/* ---- Training runs ----------------------------------------------------------------------------------------------- */

typedef struct tinker_lora {
  uint32_t struct_size;
  int32_t rank;          /* 1..512 */
  int32_t train_attn;    /* 1: adapt it, 0: not */
  int32_t train_mlp;
  int32_t train_unembed;
  int32_t has_seed;      /* 0: a random seed */
  int64_t seed;          /* of the initial weights */
} tinker_lora;
#define TINKER_LORA_INIT {sizeof(tinker_lora), 32, 1, 1, 1, 0, 0}

/* Opens a run: a fresh adapter on a base model, which is loaded if it is not. metadata: a JSON object of strings, or
 * NULL. Result: tinker_future_run. Errors: NOT_FOUND, OUT_OF_MEMORY, BUSY. since: 0.1 */
TINKER_API tinker_status tinker_session_create_run(tinker_session *session, const char *base_model, const tinker_lora *lora, const char *metadata,
                                                   tinker_future **future);

/* Opens a run with base model, configuration and weights of a checkpoint (tinker://RUN/weights/NAME); optimizer not 0: with its moments
 * and step, so that it goes on bit for bit. Result: tinker_future_run. Errors: NOT_FOUND, DATA_LOSS, as above. since: 0.1 */
TINKER_API tinker_status tinker_session_resume_run(tinker_session *session, const char *path, int32_t optimizer, const char *metadata,
                                                   tinker_future **future);

/* {"model_id", "base_model", "lora_config", "parameters", "user_metadata", "version", "step", "queued", "plugins"}: version is of the
 * weights, +1 at every optim_step and load. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_run_info(tinker_run *run, char **json);
/* Drops what is queued and frees the adapter now. Samplers made from the run live on. since: 0.1 */
TINKER_API tinker_status tinker_run_close(tinker_run *run);
/* Gives the handle up. A run whose last handle and future have gone is closed: what is still queued is dropped. since: 0.1 */
TINKER_API tinker_status tinker_run_free(tinker_run *run);

/* ---- Data -------------------------------------------------------------------------------------------------------- */

enum { TINKER_FLOAT32 = 1, TINKER_INT32 = 2, TINKER_INT64 = 3 };

/* One named input of a loss, for all datums of a tinker_datums: the values of the first, of the second, and so on. */
typedef struct tinker_tensor {
  const char *name;       /* "target_tokens", "weights", "advantages", "logprobs", ... */
  int32_t dtype;          /* TINKER_FLOAT32; TINKER_INT32 and TINKER_INT64 are both kept as int64 */
  int32_t reserved;       /* 0 */
  const void *values;     /* [count], aligned as its type */
  int64_t count;          /* values of all datums together */
  int64_t columns;        /* 0: each datum's tensor has shape (N); K > 0: shape (N, K), row by row */
  const int64_t *offsets; /* [datums + 1]: datum i has the values offsets[i] .. offsets[i+1]-1. NULL: N is its number of tokens */
} tinker_tensor;
#define TINKER_TENSOR_INIT {0, TINKER_FLOAT32, 0, 0, 0, 0, 0}

/* Training examples. Position i of a datum's tokens predicts entry i of its "target_tokens", which every datum needs: shape
 * (N), or (N, K) for K targets a position. */
typedef struct tinker_datums {
  uint32_t struct_size;
  uint32_t tensor_size;         /* sizeof(tinker_tensor) */
  int64_t count;                /* datums */
  const int32_t *tokens;        /* [token_offsets[count]]: those of all datums, one after the other */
  const int64_t *token_offsets; /* [count + 1], from 0 on; datum i has tokens token_offsets[i] .. token_offsets[i+1]-1 */
  const tinker_tensor *tensors; /* [tensor_count] */
  int64_t tensor_count;
} tinker_datums;
#define TINKER_DATUMS_INIT {sizeof(tinker_datums), sizeof(tinker_tensor), 0, 0, 0, 0, 0}

/* Makes an empty batch. It belongs to no engine and may be used for any number of operations; adding to it or clearing it
 * never changes an operation that was submitted. since: 0.1 */
TINKER_API tinker_status tinker_batch_create(tinker_batch **batch);
/* Gives the handle up. since: 0.1 */
TINKER_API tinker_status tinker_batch_free(tinker_batch *batch);
/* Empties the batch. since: 0.1 */
TINKER_API tinker_status tinker_batch_clear(tinker_batch *batch);
/* The number of datums. since: 0.1 */
TINKER_API tinker_status tinker_batch_count(tinker_batch *batch, int64_t *count);

/* Adds datums: all, or on an error none. Each array is copied once. since: 0.1 */
TINKER_API tinker_status tinker_batch_add(tinker_batch *batch, const tinker_datums *datums);

/* Adds one datum without tensors; tinker_batch_set gives it some. since: 0.1 */
TINKER_API tinker_status tinker_batch_datum(tinker_batch *batch, const int32_t *tokens, int64_t count);
/* Gives the last datum a tensor: values [shape[0] * ... * shape[rank-1]], rank 1 or 2. One of the same name is replaced. since: 0.1 */
TINKER_API tinker_status tinker_batch_set(tinker_batch *batch, const char *name, int32_t dtype, const void *values, const int64_t *shape, int32_t rank);
/* Gives the last datum a sparse tensor of shape (rows, columns) in CSR form, as torch.sparse_csr_tensor: row r has the values [row_offsets[r] ..
 * row_offsets[r+1]-1] at column_indices of the same positions. It is made dense; two values for one place are an error. Up to 4 Mi places.
 * row_offsets [rows + 1], column_indices and values [row_offsets[rows]]. since: 0.1 */
TINKER_API tinker_status tinker_batch_set_csr(tinker_batch *batch, const char *name, int32_t dtype, const void *values, const int64_t *row_offsets,
                                              const int64_t *column_indices, int64_t rows, int64_t columns);

/* ---- Passes ------------------------------------------------------------------------------------------------------ */

/* Computes a loss and adds its gradient to the run's: the whole, or on an error nothing. loss: "cross_entropy", "importance_sampling", "ppo", "cispo",
 * "dro" (inputs and configuration keys: those of the hosted service), or "wasm:NAME", a custom loss that tinker_engine_plugins lists.
 * config [config_count]: its configuration. Result: tinker_future_output. since: 0.1 */
TINKER_API tinker_status tinker_forward_backward(tinker_run *run, tinker_batch *batch, const char *loss, const tinker_pair *config, int64_t config_count,
                                                 tinker_future **future);
/* The same without a gradient. since: 0.1 */
TINKER_API tinker_status tinker_forward(tinker_run *run, tinker_batch *batch, const char *loss, const tinker_pair *config, int64_t config_count,
                                        tinker_future **future);

/* One forward whose loss you compute yourself: read the logprobs of the future's tinker_future_output, compute w = -dL/dlogprob for
 * each, and give it to tinker_held_backward of tinker_future_held. Costs one forward and one backward, as a built-in loss.
 * The order is: hold, backward, optim_step. Use it within the limit hold_ms. since: 0.1 */
TINKER_API tinker_status tinker_hold(tinker_run *run, tinker_batch *batch, tinker_future **future);
/* weights [count]: one for each logprob, in the order of tinker_output.logprobs. Adds the gradient of L = -sum(weight * logprob),
 * weights held constant, at this place in the run's order. Once per hold. Result: tinker_future_output, whose metric is L.
 * Errors: STALE (an optim_step or load came between, or the time is over). since: 0.1 */
TINKER_API tinker_status tinker_held_backward(tinker_held *held, const float *weights, int64_t count, tinker_future **future);
/* Gives the activations up, unless a backward is queued. since: 0.1 */
TINKER_API tinker_status tinker_held_free(tinker_held *held);

typedef struct tinker_adam {
  uint32_t struct_size;
  uint32_t reserved;     /* 0 */
  double learning_rate;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  double grad_clip_norm; /* global norm; 0: off */
} tinker_adam;
#define TINKER_ADAM_INIT {sizeof(tinker_adam), 0, 1e-4, 0.9, 0.95, 1e-12, 0.0, 0.0}

/* AdamW with the gradient accumulated so far, which is cleared. Result: tinker_future_output with metrics ("grad_norm"). since: 0.1 */
TINKER_API tinker_status tinker_optim_step(tinker_run *run, const tinker_adam *adam, tinker_future **future);

/* ---- Custom losses ----------------------------------------------------------------------------------------------- */

/* A WASM module from memory [bytes] or a file (docs/plugins.md): checked and compiled once, runs in a sandbox. Blocks while it is compiled. One that
 * is not accepted gives BAD_REQUEST, and the message says why. Errors: NOT_FOUND, BUSY. since: 0.1 */
TINKER_API tinker_status tinker_module_open(tinker_engine *engine, const void *wasm, int64_t bytes, tinker_module **module);
/* The same from a file. since: 0.1 */
TINKER_API tinker_status tinker_module_open_file(tinker_engine *engine, const char *path, tinker_module **module);
/* Gives the handle up. The module is unloaded when its last operation has ended, too. since: 0.1 */
TINKER_API tinker_status tinker_module_free(tinker_module *module);
/* {"name", "version", "digest", "abi"}. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_module_info(tinker_module *module, char **json);

/* tinker_forward_backward with a custom loss: one forward, one backward, the module evaluated once for the whole
 * batch. Errors of the module: BAD_REQUEST, and what its text says. since: 0.1 */
TINKER_API tinker_status tinker_forward_backward_custom(tinker_run *run, tinker_batch *batch, tinker_module *module, const tinker_pair *config,
                                                        int64_t config_count, tinker_future **future);
/* The same without a gradient; the module is told so. since: 0.1 */
TINKER_API tinker_status tinker_forward_custom(tinker_run *run, tinker_batch *batch, tinker_module *module, const tinker_pair *config, int64_t config_count,
                                               tinker_future **future);

/* ---- Checkpoints ------------------------------------------------------------------------------------------------- */

typedef struct tinker_save_options {
  uint32_t struct_size;
  int32_t overwrite;   /* replace a checkpoint of the same name */
  int64_t ttl_seconds; /* it expires after that; 0: never */
  int64_t keep_last;   /* keep only so many of the run's checkpoints of this kind, unless published; 0: all */
  const char *user_metadata; /* JSON object of texts, kept with the checkpoint and in lists; NULL: none */
} tinker_save_options;
#define TINKER_SAVE_OPTIONS_INIT {sizeof(tinker_save_options), 0, 0, 0, 0}

/* Saves weights, moments and step as tinker://RUN/weights/NAME, as they are at this place in the run's order; training goes on meanwhile. The future
 * ends when it would survive a loss of power. Result: tinker_future_json, a checkpoint: {"tinker_path", "owner", "base_model", "lora_config", "version",
 * "step", "optimizer", "public", "size_bytes", "time", "expires_at", "sha256", ...}. Errors: NO_SPACE. since: 0.1 */
TINKER_API tinker_status tinker_save_state(tinker_run *run, const char *name, const tinker_save_options *options, tinker_future **future);
/* Saves the weights alone as tinker://RUN/sampler_weights/NAME. since: 0.1 */
TINKER_API tinker_status tinker_save_for_sampler(tinker_run *run, const char *name, const tinker_save_options *options, tinker_future **future);
/* Replaces the run's weights by those of a checkpoint of the same rank and modules, drops the gradient; optimizer not 0: with moments and step, 0: they
 * start afresh. Result: tinker_future_json, the checkpoint. Errors: NOT_FOUND, DATA_LOSS. since: 0.1 */
TINKER_API tinker_status tinker_load_state(tinker_run *run, const char *path, int32_t optimizer, tinker_future **future);

typedef struct tinker_matrix {
  const char *name;     /* as PEFT names it, without "base_model.model." */
  const float *values;  /* row by row */
  const int64_t *shape; /* [rank] */
  int64_t rank;
} tinker_matrix;

typedef struct tinker_weights {
  uint32_t struct_size;
  int32_t rank;                  /* of the adapter */
  double scale;                  /* of B*A*x: 32/rank in a run */
  int64_t version;               /* of the run's weights they were read from */
  int64_t count;
  const tinker_matrix *matrices; /* [count] */
} tinker_weights;
#define TINKER_WEIGHTS_INIT {sizeof(tinker_weights), 0, 0.0, 0, 0, 0}

/* The adapter's weights, as they are at this place in the run's order. Result: tinker_future_weights. since: 0.1 */
TINKER_API tinker_status tinker_run_weights(tinker_run *run, tinker_future **future);
/* Replaces the adapter's weights by these, which have the run's rank and the names and shapes that tinker_run_weights gives; moments start
 * afresh, the gradient is dropped. version is ignored. All is copied before the call returns. Result: none. since: 0.1 */
TINKER_API tinker_status tinker_run_load_weights(tinker_run *run, const tinker_weights *weights, tinker_future **future);
/* Writes the adapter as a PEFT folder, whole or not at all; an adapter that is there is replaced. Result: none. Errors: NO_SPACE. since: 0.1 */
TINKER_API tinker_status tinker_run_save_peft(tinker_run *run, const char *folder, tinker_future **future);
/* Replaces the adapter's weights by those of a PEFT folder of the same rank and modules; moments start afresh. Result: none. Errors: NOT_FOUND. since: 0.1 */
TINKER_API tinker_status tinker_run_load_peft(tinker_run *run, const char *folder, tinker_future **future);

/* Checkpoints of all runs and owners, the newest first. query, a JSON object, or NULL for all: {"run", "owner", "reader", "kind": "weights" |
 * "sampler_weights" | "external_weights", "base_model", "name", "limit", "offset", "cursor"}. *json is {"checkpoints": [...], "total",
 * "next_cursor"}, owned by you, free with tinker_free. These functions read the disk and block for it. Whoever opened the state folder may do all of them, whoever owns a checkpoint. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_list(tinker_engine *engine, const char *query, char **json);
/* One checkpoint. *json is owned by you, free with tinker_free. Errors: NOT_FOUND. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_info(tinker_engine *engine, const char *path, char **json);
/* Deletes one. Its disk space is given back later. Errors: NOT_FOUND. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_delete(tinker_engine *engine, const char *path);
/* Lets every owner read it. Twice is no error. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_publish(tinker_engine *engine, const char *path);
/* Lets its own owner alone read it. Twice is no error. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_unpublish(tinker_engine *engine, const char *path);
/* Lets it expire so many seconds from now; 0: never. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_set_ttl(tinker_engine *engine, const char *path, int64_t seconds);

/* Records of training runs, those with the latest requests first. query: {"owner", "base_model", "limit", "offset", "cursor"} or NULL. *json is
 * {"training_runs": [...], "total", "next_cursor"}, owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_training_run_list(tinker_engine *engine, const char *query, char **json);
/* One record by its id. *json is owned by you, free with tinker_free. Errors: NOT_FOUND. since: 0.1 */
TINKER_API tinker_status tinker_training_run_info(tinker_engine *engine, const char *id, char **json);

/* Writes a checkpoint for other programs. format: "archive" (a tar file), "peft" (a folder), "merged" (a Hugging Face model folder) or "gguf" (a file for
 * llama.cpp). out: what to make, whole or not at all; it is read again and compared. options, a JSON object or NULL: {"base_model": other than the
 * checkpoint's, "unembed": "keep" | "drop" | "merge" (peft), "optimizer": true (archive: moments and step, too), "dtype": "float32" | "bfloat16" (merged),
 * "own_head": true (gguf), "replace": true}. Result: tinker_future_json, {"format", "size_bytes", "notes"}. Errors: NOT_FOUND, NO_SPACE. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_export(tinker_engine *engine, const char *path, const char *format, const char *out, const char *options,
                                                  tinker_future **future);
/* Makes a checkpoint of an archive or a PEFT folder. options, a JSON object: {"tinker_path": "tinker://RUN/weights/NAME" or ".../sampler_weights/NAME", needed;
 * "owner", "base_model": where the source names none, "seed": of factors that the source lacks, "overwrite": true, "ttl_seconds"}. Result:
 * tinker_future_json, the checkpoint with "notes". Errors: NOT_FOUND, DATA_LOSS, NO_SPACE. since: 0.1 */
TINKER_API tinker_status tinker_checkpoint_import(tinker_engine *engine, const char *source, const char *options, tinker_future **future);

/* ---- Sampling ---------------------------------------------------------------------------------------------------- */

/* Opens a sampler on a bare base model, which is loaded if it is not. Result of these four: tinker_future_sampler. Errors: NOT_FOUND,
 * OUT_OF_MEMORY. since: 0.1 */
TINKER_API tinker_status tinker_session_create_sampler(tinker_session *session, const char *base_model, tinker_future **future);
/* ... with the weights of a checkpoint, on its base model. since: 0.1 */
TINKER_API tinker_status tinker_session_load_sampler(tinker_session *session, const char *path, tinker_future **future);
/* ... with the adapter of a PEFT folder. since: 0.1 */
TINKER_API tinker_status tinker_session_peft_sampler(tinker_session *session, const char *base_model, const char *folder, tinker_future **future);
/* ... with the run's weights as they are at this place in its order; later training does not change it. since: 0.1 */
TINKER_API tinker_status tinker_run_sampler(tinker_run *run, tinker_future **future);

/* {"base_model", "version", "max_context_length", "vocabulary", "eos_token_ids"}. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_sampler_info(tinker_sampler *sampler, char **json);
/* Refuses new requests; frees the sampler when those under way have ended. since: 0.1 */
TINKER_API tinker_status tinker_sampler_close(tinker_sampler *sampler);
/* Gives the handle up. The sampler is closed when its last handle and future have gone. since: 0.1 */
TINKER_API tinker_status tinker_sampler_free(tinker_sampler *sampler);

typedef struct tinker_sampling {
  uint32_t struct_size;
  int32_t num_samples;
  int64_t max_tokens;          /* 0: up to the model's context */
  int32_t has_seed;            /* 0: a random seed */
  int32_t top_k;               /* -1: off */
  int64_t seed;
  double temperature;          /* 0: the most probable token */
  double top_p;                /* 1: off */
  const char *const *stop;     /* [stop_count]: end when the text contains one of these */
  int64_t stop_count;
  const int32_t *stop_tokens;  /* [stop_token_count]: end on one of these, besides the model's own */
  int64_t stop_token_count;
  int32_t prompt_logprobs;     /* 1: the prompt's own log-probabilities, too */
  int32_t topk_prompt_logprobs; /* the k most probable tokens at each position of the prompt; 0: none */
  int32_t no_stop_tokens;      /* 1: no token ends a sequence, not even the model's own; stop_token_count is 0 */
  int32_t reserved;            /* 0 */
} tinker_sampling;
#define TINKER_SAMPLING_INIT {sizeof(tinker_sampling), 1, 0, 0, -1, 0, 1.0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Draws continuations of prompt [count]. Result: tinker_future_samples. Cancelling stops at the next token. Errors: BUSY, UNSUPPORTED (stop
 * strings without a tokenizer). since: 0.1 */
TINKER_API tinker_status tinker_sample(tinker_sampler *sampler, const int32_t *prompt, int64_t count, const tinker_sampling *sampling, tinker_future **future);
/* Only the log-probability of each token of prompt [count], given those before it; it may fill the model's context. Result:
 * tinker_future_samples without sequences. since: 0.1 */
TINKER_API tinker_status tinker_compute_logprobs(tinker_sampler *sampler, const int32_t *prompt, int64_t count, tinker_future **future);

typedef struct tinker_token {
  int64_t sample;      /* which of the samples it belongs to */
  int32_t id;
  float logprob;       /* as tinker_samples.logprobs */
  float raw_logprob;   /* as tinker_samples.raw_logprobs */
  int32_t reserved;    /* 0 */
} tinker_token;

/* tinker_sample with the tokens as they are drawn. since: 0.1 */
TINKER_API tinker_status tinker_sample_stream(tinker_sampler *sampler, const int32_t *prompt, int64_t count, const tinker_sampling *sampling,
                                              tinker_stream **stream);
/* Takes up to capacity tokens that were drawn since; *count is how many. Waits for the first one up to timeout_ms (0: not at all, negative: for
 * ever). TINKER_PENDING: none came in time. TINKER_END: all were taken. A request that failed gives its error. One thread at a time
 * calls it. since: 0.1 */
TINKER_API tinker_status tinker_stream_next(tinker_stream *stream, int64_t timeout_ms, tinker_token *tokens, int64_t capacity, int64_t *count);
/* The future with the whole result (tinker_future_samples); cancelling it ends the stream. A handle of yours. since: 0.1 */
TINKER_API tinker_status tinker_stream_future(tinker_stream *stream, tinker_future **future);
/* Gives the handle up; a request under way is cancelled unless a future of it is held. since: 0.1 */
TINKER_API tinker_status tinker_stream_free(tinker_stream *stream);

/* ---- Futures ----------------------------------------------------------------------------------------------------- */

enum {
  TINKER_QUEUED = 1,  /* behind others */
  TINKER_RUNNING = 2,
  TINKER_STARVED = 3, /* started, waits for device memory that others hold */
  TINKER_ENDED = 4    /* tinker_future_wait answers at once */
};

/* How far it is, without waiting. since: 0.1 */
TINKER_API tinker_status tinker_future_poll(tinker_future *future, int32_t *state);
/* Waits up to timeout_ms (0: not at all, negative: for ever), which bounds the wait, not the operation. TINKER_OK: it has succeeded;
 * TINKER_PENDING: not yet ended; otherwise the operation's error, with its message in tinker_last_error(). Any number of
 * times, any number of threads. since: 0.1 */
TINKER_API tinker_status tinker_future_wait(tinker_future *future, int64_t timeout_ms);
/* Drops the operation if it is still queued: it then fails with TINKER_ERR_CANCELLED. A training operation that has started
 * finishes; sampling stops at its next token. Does not wait. since: 0.1 */
TINKER_API tinker_status tinker_future_cancel(tinker_future *future);
/* The message of an operation that failed; "" if it succeeded. TINKER_PENDING if it has not ended. Valid until
 * the future is freed. since: 0.1 */
TINKER_API tinker_status tinker_future_error(tinker_future *future, const char **message);
/* Gives the handle up. The operation goes on; its result is not wanted, and a run, sampler or hold that would have been it is
 * closed. since: 0.1 */
TINKER_API tinker_status tinker_future_free(tinker_future *future);

/* Results. Each function belongs to the operations that name it; for others it gives TINKER_ERR_BAD_REQUEST. TINKER_PENDING: the
 * operation has not ended. One that failed gives its error. */

/* A new handle, yours, at each call. since: 0.1 */
TINKER_API tinker_status tinker_future_run(tinker_future *future, tinker_run **run);
/* A new handle, yours, at each call. since: 0.1 */
TINKER_API tinker_status tinker_future_sampler(tinker_future *future, tinker_sampler **sampler);
/* A new handle, yours, at each call: the hold of a tinker_hold. since: 0.1 */
TINKER_API tinker_status tinker_future_held(tinker_future *future, tinker_held **held);
/* JSON. *json is owned by you, free with tinker_free. since: 0.1 */
TINKER_API tinker_status tinker_future_json(tinker_future *future, char **json);

typedef struct tinker_output {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t count;              /* datums; 0 of an optim_step */
  const int64_t *offsets;     /* [count + 1]: datum i has logprobs[offsets[i] .. offsets[i+1]-1] */
  const int64_t *columns;     /* [count]: 0: shape (N); K: shape (N, K), row by row */
  const float *logprobs;      /* [offsets[count]]: of the targets */
  int64_t metric_count;
  const tinker_pair *metrics; /* [metric_count], by name: "loss:sum" and others, each with its reduction; "grad_norm" */
} tinker_output;

/* *output and all in it is valid until the future is freed. since: 0.1 */
TINKER_API tinker_status tinker_future_output(tinker_future *future, const tinker_output **output);

enum { TINKER_STOP = 1, TINKER_LENGTH = 2 };

typedef struct tinker_samples {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t count;                /* sequences */
  const int64_t *offsets;       /* [count + 1]: sequence i has the entries offsets[i] .. offsets[i+1]-1 of the next three */
  const int32_t *tokens;        /* with the one that ended it */
  const float *logprobs;        /* of the distribution drawn from: with temperature, before top-k and top-p; at temperature 0 the value at 1 */
  const float *raw_logprobs;    /* of the model, at temperature 1: the bits of tinker_forward */
  const int32_t *stop_reasons;  /* [count]: TINKER_STOP or TINKER_LENGTH */
  int64_t prompt_count;         /* tokens of the prompt; 0 when nothing about it was asked for */
  const float *prompt_logprobs; /* [prompt_count], the first is NaN; NULL when not asked for */
  const int64_t *topk_offsets;  /* [prompt_count + 1] into the next two; NULL when not asked for. The first token has none */
  const int32_t *topk_tokens;   /* the most probable first, ties by the lower id */
  const float *topk_logprobs;
} tinker_samples;

/* *samples and all in it is valid until the future is freed. since: 0.1 */
TINKER_API tinker_status tinker_future_samples(tinker_future *future, const tinker_samples **samples);

/* *weights and all in it is valid until the future is freed. since: 0.1 */
TINKER_API tinker_status tinker_future_weights(tinker_future *future, const tinker_weights **weights);

#ifdef __cplusplus
}
#endif

#endif /* TINKER_H */
