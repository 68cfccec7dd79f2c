//go:build cgo && unix

/* The public functions. Each refuses to run in a child of fork(), clears the thread's last error, and calls the Go function of its name. Outputs
 * that are handles pass through a number on the stack: a handle is one, whatever its C type. */
#include "tinker.h"
#include "_cgo_export.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- fork -------------------------------------------------------------------------------------------------------- */

static volatile int forked; /* 1 in a child of fork(): the Go runtime's threads are not there, so Go must not be entered */
static const char forked_text[] =
    "this process is a child of fork(): libtinker cannot be used in it; start processes with exec, or load the library in the child";

static void after_fork(void) { forked = 1; }

/* ---- the last error: a buffer for each thread that has had one --------------------------------------------------- */

static pthread_key_t error_key;
static int have_key;

__attribute__((constructor)) static void begin(void) {
  have_key = pthread_key_create(&error_key, free) == 0;
  pthread_atfork(0, 0, after_fork);
}

void tinkershim_set_error(const char *text, size_t bytes) {
  char *p;
  if (!have_key) return;
  if (bytes > 16384) bytes = 16384; /* a stack trace at most */
  p = realloc(pthread_getspecific(error_key), bytes + 1);
  if (!p) return;
  memcpy(p, text, bytes);
  p[bytes] = 0;
  pthread_setspecific(error_key, p);
}

static void clear_error(void) {
  char *p = have_key ? pthread_getspecific(error_key) : 0;
  if (p) p[0] = 0;
}

const char *tinker_last_error(void) {
  const char *p;
  if (forked) return forked_text;
  p = have_key ? pthread_getspecific(error_key) : 0;
  return p ? p : "";
}

static tinker_status missing(const char *what) {
  char text[64] = "the output ";
  strncat(text, what, 30);
  strcat(text, " is NULL");
  tinkershim_set_error(text, strlen(text));
  return TINKER_ERR_BAD_REQUEST;
}

/* ---- constants --------------------------------------------------------------------------------------------------- */

#define TEXT(x) #x
#define VERSION(a, b, c) TEXT(a) "." TEXT(b) "." TEXT(c)
const char *tinker_version(void) { return VERSION(TINKER_VERSION_MAJOR, TINKER_VERSION_MINOR, TINKER_VERSION_PATCH); }

const char *tinker_status_name(tinker_status status) {
  switch (status) {
#define NAME(s) case s: return #s
    NAME(TINKER_OK);
    NAME(TINKER_ERR_BAD_REQUEST);
    NAME(TINKER_ERR_NOT_FOUND);
    NAME(TINKER_ERR_UNSUPPORTED);
    NAME(TINKER_ERR_OUT_OF_MEMORY);
    NAME(TINKER_ERR_STALE);
    NAME(TINKER_ERR_CANCELLED);
    NAME(TINKER_ERR_CLOSED);
    NAME(TINKER_ERR_BUSY);
    NAME(TINKER_ERR_DEVICE_LOST);
    NAME(TINKER_ERR_NO_SPACE);
    NAME(TINKER_ERR_DATA_LOSS);
    NAME(TINKER_ERR_INTERNAL);
    NAME(TINKER_ERR_HANDLE);
    NAME(TINKER_ERR_FORKED);
    NAME(TINKER_PENDING);
    NAME(TINKER_END);
  }
  return "unknown status";
}

void tinker_free(void *memory) {
  if (memory && !forked) tinkergo_free(memory);
}

/* ---- how a function calls its twin ------------------------------------------------------------------------------- */

#define H(handle) ((uint64_t)(uintptr_t)(handle))
#define S(string) ((char *)(uintptr_t)(string)) /* Go has no const */
#define P(type, pointer) ((type *)(uintptr_t)(pointer))

#define ENTER \
  do { \
    if (forked) return TINKER_ERR_FORKED; \
    clear_error(); \
  } while (0)
#define NEED(out) \
  do { \
    if (!(out)) return missing(#out); \
  } while (0)

/* Calls CALL. */
#define CALL(call) \
  do { \
    ENTER; \
    return call; \
  } while (0)
/* Calls CALL, which writes OUT. */
#define OUT(out, call) \
  do { \
    ENTER; \
    NEED(out); \
    return call; \
  } while (0)
/* Calls CALL, which writes a new handle to h. */
#define NEW(type, out, call) \
  do { \
    uint64_t h = 0; \
    tinker_status status; \
    ENTER; \
    NEED(out); \
    status = call; \
    if (status == TINKER_OK) *(out) = (type *)(uintptr_t)h; \
    return status; \
  } while (0)
/* Calls CALL, which writes the address of a result to p. */
#define VIEW(type, out, call) \
  do { \
    void *p = 0; \
    tinker_status status; \
    ENTER; \
    NEED(out); \
    status = call; \
    if (status == TINKER_OK) *(out) = (const type *)p; \
    return status; \
  } while (0)

/* ---- engine ------------------------------------------------------------------------------------------------------ */

tinker_status tinker_debug_counts(char **json) { OUT(json, tinkergo_debug_counts(json)); }
tinker_status tinker_default_folders(char **json) { OUT(json, tinkergo_default_folders(json)); }

tinker_status tinker_engine_open(const tinker_engine_options *options, tinker_engine **engine) {
  NEW(tinker_engine, engine, tinkergo_engine_open(P(tinker_engine_options, options), &h));
}
tinker_status tinker_engine_close(tinker_engine *engine) { CALL(tinkergo_engine_close(H(engine))); }
tinker_status tinker_engine_free(tinker_engine *engine) { CALL(tinkergo_engine_free(H(engine))); }
tinker_status tinker_engine_info(tinker_engine *engine, char **json) { OUT(json, tinkergo_engine_info(H(engine), json)); }
tinker_status tinker_engine_capabilities(tinker_engine *engine, char **json) { OUT(json, tinkergo_engine_capabilities(H(engine), json)); }
tinker_status tinker_engine_models(tinker_engine *engine, char **json) { OUT(json, tinkergo_engine_models(H(engine), json)); }
tinker_status tinker_engine_plugins(tinker_engine *engine, char **json) { OUT(json, tinkergo_engine_plugins(H(engine), json)); }
tinker_status tinker_model_info(tinker_engine *engine, const char *name, char **json) {
  OUT(json, tinkergo_model_info(H(engine), S(name), json));
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

tinker_status tinker_tokenizer_open(tinker_engine *engine, const char *model, tinker_tokenizer **tokenizer) {
  NEW(tinker_tokenizer, tokenizer, tinkergo_tokenizer_open(H(engine), S(model), &h));
}
tinker_status tinker_tokenizer_free(tinker_tokenizer *tokenizer) { CALL(tinkergo_tokenizer_free(H(tokenizer))); }
tinker_status tinker_tokenizer_info(tinker_tokenizer *tokenizer, char **json) { OUT(json, tinkergo_tokenizer_info(H(tokenizer), json)); }
tinker_status tinker_tokenizer_encode(tinker_tokenizer *tokenizer, const char *text, int64_t bytes, int32_t special, int32_t **ids, int64_t *count) {
  ENTER;
  NEED(ids);
  OUT(count, tinkergo_tokenizer_encode(H(tokenizer), S(text), bytes, special, ids, count));
}
tinker_status tinker_tokenizer_decode(tinker_tokenizer *tokenizer, const int32_t *ids, int64_t count, int32_t skip_special, char **text, int64_t *bytes) {
  OUT(text, tinkergo_tokenizer_decode(H(tokenizer), P(int32_t, ids), count, skip_special, text, bytes));
}
tinker_status tinker_tokenizer_id(tinker_tokenizer *tokenizer, const char *token, int32_t *id) {
  OUT(id, tinkergo_tokenizer_id(H(tokenizer), S(token), id));
}
tinker_status tinker_decoder_open(tinker_tokenizer *tokenizer, int32_t skip_special, tinker_decoder **decoder) {
  NEW(tinker_decoder, decoder, tinkergo_decoder_open(H(tokenizer), skip_special, &h));
}
tinker_status tinker_decoder_free(tinker_decoder *decoder) { CALL(tinkergo_decoder_free(H(decoder))); }
tinker_status tinker_decoder_push(tinker_decoder *decoder, const int32_t *ids, int64_t count, int32_t last, char **text) {
  OUT(text, tinkergo_decoder_push(H(decoder), P(int32_t, ids), count, last, text));
}
tinker_status tinker_chat_render(tinker_tokenizer *tokenizer, const char *request, int32_t **ids, uint8_t **trained, int64_t *count, char **json) {
  ENTER;
  NEED(ids);
  OUT(count, tinkergo_chat_render(H(tokenizer), S(request), ids, trained, count, json));
}
tinker_status tinker_chat_parse(tinker_tokenizer *tokenizer, const char *request, const char *text, char **json) {
  OUT(json, tinkergo_chat_parse(H(tokenizer), S(request), S(text), json));
}

/* ---- sessions and runs ------------------------------------------------------------------------------------------- */

tinker_status tinker_session_open(tinker_engine *engine, const char *owner, tinker_session **session) {
  NEW(tinker_session, session, tinkergo_session_open(H(engine), S(owner), &h));
}
tinker_status tinker_session_close(tinker_session *session) { CALL(tinkergo_session_close(H(session))); }
tinker_status tinker_session_free(tinker_session *session) { CALL(tinkergo_session_free(H(session))); }
tinker_status tinker_session_info(tinker_session *session, char **json) { OUT(json, tinkergo_session_info(H(session), json)); }
tinker_status tinker_session_create_run(tinker_session *session, const char *base_model, const tinker_lora *lora, const char *metadata, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_session_create_run(H(session), S(base_model), P(tinker_lora, lora), S(metadata), &h));
}
tinker_status tinker_session_resume_run(tinker_session *session, const char *path, int32_t optimizer, const char *metadata, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_session_resume_run(H(session), S(path), optimizer, S(metadata), &h));
}
tinker_status tinker_run_info(tinker_run *run, char **json) { OUT(json, tinkergo_run_info(H(run), json)); }
tinker_status tinker_run_close(tinker_run *run) { CALL(tinkergo_run_close(H(run))); }
tinker_status tinker_run_free(tinker_run *run) { CALL(tinkergo_run_free(H(run))); }

/* ---- data -------------------------------------------------------------------------------------------------------- */

tinker_status tinker_batch_create(tinker_batch **batch) { NEW(tinker_batch, batch, tinkergo_batch_create(&h)); }
tinker_status tinker_batch_free(tinker_batch *batch) { CALL(tinkergo_batch_free(H(batch))); }
tinker_status tinker_batch_clear(tinker_batch *batch) { CALL(tinkergo_batch_clear(H(batch))); }
tinker_status tinker_batch_count(tinker_batch *batch, int64_t *count) { OUT(count, tinkergo_batch_count(H(batch), count)); }
tinker_status tinker_batch_add(tinker_batch *batch, const tinker_datums *datums) { CALL(tinkergo_batch_add(H(batch), P(tinker_datums, datums))); }
tinker_status tinker_batch_datum(tinker_batch *batch, const int32_t *tokens, int64_t count) {
  CALL(tinkergo_batch_datum(H(batch), P(int32_t, tokens), count));
}
tinker_status tinker_batch_set(tinker_batch *batch, const char *name, int32_t dtype, const void *values, const int64_t *shape, int32_t rank) {
  CALL(tinkergo_batch_set(H(batch), S(name), dtype, P(void, values), P(int64_t, shape), rank));
}
tinker_status tinker_batch_set_csr(tinker_batch *batch, const char *name, int32_t dtype, const void *values, const int64_t *row_offsets,
                                   const int64_t *column_indices, int64_t rows, int64_t columns) {
  CALL(tinkergo_batch_set_csr(H(batch), S(name), dtype, P(void, values), P(int64_t, row_offsets), P(int64_t, column_indices), rows, columns));
}

/* ---- passes ------------------------------------------------------------------------------------------------------ */

tinker_status tinker_forward_backward(tinker_run *run, tinker_batch *batch, const char *loss, const tinker_pair *config, int64_t config_count,
                                      tinker_future **future) {
  NEW(tinker_future, future, tinkergo_forward_backward(H(run), H(batch), S(loss), P(tinker_pair, config), config_count, &h));
}
tinker_status tinker_forward(tinker_run *run, tinker_batch *batch, const char *loss, const tinker_pair *config, int64_t config_count, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_forward(H(run), H(batch), S(loss), P(tinker_pair, config), config_count, &h));
}
tinker_status tinker_hold(tinker_run *run, tinker_batch *batch, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_hold(H(run), H(batch), &h));
}
tinker_status tinker_held_backward(tinker_held *held, const float *weights, int64_t count, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_held_backward(H(held), P(float, weights), count, &h));
}
tinker_status tinker_held_free(tinker_held *held) { CALL(tinkergo_held_free(H(held))); }
tinker_status tinker_optim_step(tinker_run *run, const tinker_adam *adam, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_optim_step(H(run), P(tinker_adam, adam), &h));
}

/* ---- custom losses ----------------------------------------------------------------------------------------------- */

tinker_status tinker_module_open(tinker_engine *engine, const void *wasm, int64_t bytes, tinker_module **module) {
  NEW(tinker_module, module, tinkergo_module_open(H(engine), P(void, wasm), bytes, &h));
}
tinker_status tinker_module_open_file(tinker_engine *engine, const char *path, tinker_module **module) {
  NEW(tinker_module, module, tinkergo_module_open_file(H(engine), S(path), &h));
}
tinker_status tinker_module_free(tinker_module *module) { CALL(tinkergo_module_free(H(module))); }
tinker_status tinker_module_info(tinker_module *module, char **json) { OUT(json, tinkergo_module_info(H(module), json)); }
tinker_status tinker_forward_backward_custom(tinker_run *run, tinker_batch *batch, tinker_module *module, const tinker_pair *config, int64_t config_count,
                                             tinker_future **future) {
  NEW(tinker_future, future, tinkergo_forward_backward_custom(H(run), H(batch), H(module), P(tinker_pair, config), config_count, &h));
}
tinker_status tinker_forward_custom(tinker_run *run, tinker_batch *batch, tinker_module *module, const tinker_pair *config, int64_t config_count,
                                    tinker_future **future) {
  NEW(tinker_future, future, tinkergo_forward_custom(H(run), H(batch), H(module), P(tinker_pair, config), config_count, &h));
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------- */

tinker_status tinker_save_state(tinker_run *run, const char *name, const tinker_save_options *options, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_save_state(H(run), S(name), P(tinker_save_options, options), &h));
}
tinker_status tinker_save_for_sampler(tinker_run *run, const char *name, const tinker_save_options *options, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_save_for_sampler(H(run), S(name), P(tinker_save_options, options), &h));
}
tinker_status tinker_load_state(tinker_run *run, const char *path, int32_t optimizer, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_load_state(H(run), S(path), optimizer, &h));
}
tinker_status tinker_run_weights(tinker_run *run, tinker_future **future) { NEW(tinker_future, future, tinkergo_run_weights(H(run), &h)); }
tinker_status tinker_run_load_weights(tinker_run *run, const tinker_weights *weights, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_run_load_weights(H(run), P(tinker_weights, weights), &h));
}
tinker_status tinker_run_save_peft(tinker_run *run, const char *folder, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_run_save_peft(H(run), S(folder), &h));
}
tinker_status tinker_run_load_peft(tinker_run *run, const char *folder, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_run_load_peft(H(run), S(folder), &h));
}
tinker_status tinker_checkpoint_list(tinker_engine *engine, const char *query, char **json) {
  OUT(json, tinkergo_checkpoint_list(H(engine), S(query), json));
}
tinker_status tinker_checkpoint_info(tinker_engine *engine, const char *path, char **json) {
  OUT(json, tinkergo_checkpoint_info(H(engine), S(path), json));
}
tinker_status tinker_checkpoint_delete(tinker_engine *engine, const char *path) { CALL(tinkergo_checkpoint_delete(H(engine), S(path))); }
tinker_status tinker_checkpoint_publish(tinker_engine *engine, const char *path) { CALL(tinkergo_checkpoint_publish(H(engine), S(path))); }
tinker_status tinker_checkpoint_unpublish(tinker_engine *engine, const char *path) { CALL(tinkergo_checkpoint_unpublish(H(engine), S(path))); }
tinker_status tinker_checkpoint_set_ttl(tinker_engine *engine, const char *path, int64_t seconds) {
  CALL(tinkergo_checkpoint_set_ttl(H(engine), S(path), seconds));
}
tinker_status tinker_training_run_list(tinker_engine *engine, const char *query, char **json) {
  OUT(json, tinkergo_training_run_list(H(engine), S(query), json));
}
tinker_status tinker_training_run_info(tinker_engine *engine, const char *id, char **json) {
  OUT(json, tinkergo_training_run_info(H(engine), S(id), json));
}
tinker_status tinker_checkpoint_export(tinker_engine *engine, const char *path, const char *format, const char *out, const char *options,
                                       tinker_future **future) {
  NEW(tinker_future, future, tinkergo_checkpoint_export(H(engine), S(path), S(format), S(out), S(options), &h));
}
tinker_status tinker_checkpoint_import(tinker_engine *engine, const char *source, const char *options, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_checkpoint_import(H(engine), S(source), S(options), &h));
}

/* ---- sampling ---------------------------------------------------------------------------------------------------- */

tinker_status tinker_session_create_sampler(tinker_session *session, const char *base_model, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_session_create_sampler(H(session), S(base_model), &h));
}
tinker_status tinker_session_load_sampler(tinker_session *session, const char *path, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_session_load_sampler(H(session), S(path), &h));
}
tinker_status tinker_session_peft_sampler(tinker_session *session, const char *base_model, const char *folder, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_session_peft_sampler(H(session), S(base_model), S(folder), &h));
}
tinker_status tinker_run_sampler(tinker_run *run, tinker_future **future) { NEW(tinker_future, future, tinkergo_run_sampler(H(run), &h)); }
tinker_status tinker_sampler_info(tinker_sampler *sampler, char **json) { OUT(json, tinkergo_sampler_info(H(sampler), json)); }
tinker_status tinker_sampler_close(tinker_sampler *sampler) { CALL(tinkergo_sampler_close(H(sampler))); }
tinker_status tinker_sampler_free(tinker_sampler *sampler) { CALL(tinkergo_sampler_free(H(sampler))); }
tinker_status tinker_sample(tinker_sampler *sampler, const int32_t *prompt, int64_t count, const tinker_sampling *sampling, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_sample(H(sampler), P(int32_t, prompt), count, P(tinker_sampling, sampling), &h));
}
tinker_status tinker_compute_logprobs(tinker_sampler *sampler, const int32_t *prompt, int64_t count, tinker_future **future) {
  NEW(tinker_future, future, tinkergo_compute_logprobs(H(sampler), P(int32_t, prompt), count, &h));
}
tinker_status tinker_sample_stream(tinker_sampler *sampler, const int32_t *prompt, int64_t count, const tinker_sampling *sampling, tinker_stream **stream) {
  NEW(tinker_stream, stream, tinkergo_sample_stream(H(sampler), P(int32_t, prompt), count, P(tinker_sampling, sampling), &h));
}
tinker_status tinker_stream_next(tinker_stream *stream, int64_t timeout_ms, tinker_token *tokens, int64_t capacity, int64_t *count) {
  OUT(count, tinkergo_stream_next(H(stream), timeout_ms, tokens, capacity, count));
}
tinker_status tinker_stream_future(tinker_stream *stream, tinker_future **future) { NEW(tinker_future, future, tinkergo_stream_future(H(stream), &h)); }
tinker_status tinker_stream_free(tinker_stream *stream) { CALL(tinkergo_stream_free(H(stream))); }

/* ---- futures ----------------------------------------------------------------------------------------------------- */

tinker_status tinker_future_poll(tinker_future *future, int32_t *state) { OUT(state, tinkergo_future_poll(H(future), state)); }
tinker_status tinker_future_wait(tinker_future *future, int64_t timeout_ms) { CALL(tinkergo_future_wait(H(future), timeout_ms)); }
tinker_status tinker_future_cancel(tinker_future *future) { CALL(tinkergo_future_cancel(H(future))); }
tinker_status tinker_future_error(tinker_future *future, const char **message) {
  char *p = 0;
  tinker_status status;
  ENTER;
  NEED(message);
  status = tinkergo_future_error(H(future), &p);
  if (status == TINKER_OK) *message = p;
  return status;
}
tinker_status tinker_future_free(tinker_future *future) { CALL(tinkergo_future_free(H(future))); }
tinker_status tinker_future_run(tinker_future *future, tinker_run **run) { NEW(tinker_run, run, tinkergo_future_run(H(future), &h)); }
tinker_status tinker_future_sampler(tinker_future *future, tinker_sampler **sampler) { NEW(tinker_sampler, sampler, tinkergo_future_sampler(H(future), &h)); }
tinker_status tinker_future_held(tinker_future *future, tinker_held **held) { NEW(tinker_held, held, tinkergo_future_held(H(future), &h)); }
tinker_status tinker_future_json(tinker_future *future, char **json) { OUT(json, tinkergo_future_json(H(future), json)); }
tinker_status tinker_future_output(tinker_future *future, const tinker_output **output) { VIEW(tinker_output, output, tinkergo_future_output(H(future), &p)); }
tinker_status tinker_future_samples(tinker_future *future, const tinker_samples **samples) {
  VIEW(tinker_samples, samples, tinkergo_future_samples(H(future), &p));
}
tinker_status tinker_future_weights(tinker_future *future, const tinker_weights **weights) {
  VIEW(tinker_weights, weights, tinkergo_future_weights(H(future), &p));
}
