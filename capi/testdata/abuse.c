/* Everything a program can do wrong: an error code each time, never a crash, and nothing left at the end.
 * One argument: a folder that this program may fill. */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

#define WASM "../plugins/losses/logprob_variance.wasm" /* below the folder capi */

/* Every function that takes a handle, with one that is none. X stands for it. */
static void call_all(void *x, tinker_status want, const char *dir) {
  char *json = NULL;
  const char *text = NULL;
  int32_t *ids = NULL, number = 0, one = 1;
  int64_t count = 0, shape = 1;
  float w = 1;
  void *out = NULL;
  tinker_token token;
  const tinker_output *output;
  const tinker_samples *samples;
  const tinker_weights *weights;
  tinker_datums datums = TINKER_DATUMS_INIT;
  tinker_weights none = TINKER_WEIGHTS_INIT;
#define E (tinker_engine *)x
#define FUTURE (tinker_future **)&out
  WANT(want, tinker_engine_close(E));
  WANT(want, tinker_engine_info(E, &json));
  WANT(want, tinker_engine_capabilities(E, &json));
  WANT(want, tinker_engine_models(E, &json));
  WANT(want, tinker_engine_plugins(E, &json));
  WANT(want, tinker_model_info(E, MODEL, &json));
  WANT(want, tinker_tokenizer_open(E, MODEL, (tinker_tokenizer **)&out));
  WANT(want, tinker_tokenizer_info((tinker_tokenizer *)x, &json));
  WANT(want, tinker_tokenizer_encode((tinker_tokenizer *)x, "a", 1, 0, &ids, &count));
  WANT(want, tinker_tokenizer_decode((tinker_tokenizer *)x, &one, 1, 0, &json, NULL));
  WANT(want, tinker_tokenizer_id((tinker_tokenizer *)x, "a", &number));
  WANT(want, tinker_decoder_open((tinker_tokenizer *)x, 0, (tinker_decoder **)&out));
  WANT(want, tinker_decoder_push((tinker_decoder *)x, &one, 1, 1, &json));
  WANT(want, tinker_chat_render((tinker_tokenizer *)x, "{}", &ids, NULL, &count, NULL));
  WANT(want, tinker_chat_parse((tinker_tokenizer *)x, "{}", "", &json));
  WANT(want, tinker_session_open(E, NULL, (tinker_session **)&out));
  WANT(want, tinker_session_close((tinker_session *)x));
  WANT(want, tinker_session_info((tinker_session *)x, &json));
  WANT(want, tinker_session_create_run((tinker_session *)x, MODEL, NULL, NULL, FUTURE));
  WANT(want, tinker_session_resume_run((tinker_session *)x, "tinker://a/weights/b", 1, NULL, FUTURE));
  WANT(want, tinker_session_create_sampler((tinker_session *)x, MODEL, FUTURE));
  WANT(want, tinker_session_load_sampler((tinker_session *)x, "tinker://a/weights/b", FUTURE));
  WANT(want, tinker_session_peft_sampler((tinker_session *)x, MODEL, dir, FUTURE));
  WANT(want, tinker_run_info((tinker_run *)x, &json));
  WANT(want, tinker_run_close((tinker_run *)x));
  WANT(want, tinker_batch_clear((tinker_batch *)x));
  WANT(want, tinker_batch_count((tinker_batch *)x, &count));
  WANT(want, tinker_batch_add((tinker_batch *)x, &datums));
  WANT(want, tinker_batch_datum((tinker_batch *)x, tokens, N));
  WANT(want, tinker_batch_set((tinker_batch *)x, "a", TINKER_FLOAT32, &w, &shape, 1));
  WANT(want, tinker_batch_set_csr((tinker_batch *)x, "a", TINKER_FLOAT32, &w, &count, &count, 1, 1));
  WANT(want, tinker_forward_backward((tinker_run *)x, (tinker_batch *)x, "cross_entropy", NULL, 0, FUTURE));
  WANT(want, tinker_forward((tinker_run *)x, (tinker_batch *)x, "cross_entropy", NULL, 0, FUTURE));
  WANT(want, tinker_hold((tinker_run *)x, (tinker_batch *)x, FUTURE));
  WANT(want, tinker_held_backward((tinker_held *)x, &w, 1, FUTURE));
  WANT(want, tinker_optim_step((tinker_run *)x, NULL, FUTURE));
  WANT(want, tinker_module_open(E, &w, 4, (tinker_module **)&out));
  WANT(want, tinker_module_open_file(E, dir, (tinker_module **)&out));
  WANT(want, tinker_module_info((tinker_module *)x, &json));
  WANT(want, tinker_forward_backward_custom((tinker_run *)x, (tinker_batch *)x, (tinker_module *)x, NULL, 0, FUTURE));
  WANT(want, tinker_forward_custom((tinker_run *)x, (tinker_batch *)x, (tinker_module *)x, NULL, 0, FUTURE));
  WANT(want, tinker_save_state((tinker_run *)x, "a", NULL, FUTURE));
  WANT(want, tinker_save_for_sampler((tinker_run *)x, "a", NULL, FUTURE));
  WANT(want, tinker_load_state((tinker_run *)x, "tinker://a/weights/b", 1, FUTURE));
  WANT(want, tinker_run_weights((tinker_run *)x, FUTURE));
  WANT(want, tinker_run_load_weights((tinker_run *)x, &none, FUTURE));
  WANT(want, tinker_run_save_peft((tinker_run *)x, dir, FUTURE));
  WANT(want, tinker_run_load_peft((tinker_run *)x, dir, FUTURE));
  WANT(want, tinker_run_sampler((tinker_run *)x, FUTURE));
  WANT(want, tinker_checkpoint_list(E, NULL, &json));
  WANT(want, tinker_checkpoint_info(E, "tinker://a/weights/b", &json));
  WANT(want, tinker_checkpoint_delete(E, "tinker://a/weights/b"));
  WANT(want, tinker_checkpoint_publish(E, "tinker://a/weights/b"));
  WANT(want, tinker_checkpoint_unpublish(E, "tinker://a/weights/b"));
  WANT(want, tinker_checkpoint_set_ttl(E, "tinker://a/weights/b", 1));
  WANT(want, tinker_training_run_list(E, NULL, &json));
  WANT(want, tinker_training_run_info(E, "a", &json));
  WANT(want, tinker_checkpoint_export(E, "tinker://a/weights/b", "peft", dir, NULL, FUTURE));
  WANT(want, tinker_checkpoint_import(E, dir, NULL, FUTURE));
  WANT(want, tinker_sampler_info((tinker_sampler *)x, &json));
  WANT(want, tinker_sampler_close((tinker_sampler *)x));
  WANT(want, tinker_sample((tinker_sampler *)x, tokens, N, NULL, FUTURE));
  WANT(want, tinker_compute_logprobs((tinker_sampler *)x, tokens, N, FUTURE));
  WANT(want, tinker_sample_stream((tinker_sampler *)x, tokens, N, NULL, (tinker_stream **)&out));
  WANT(want, tinker_stream_next((tinker_stream *)x, 0, &token, 1, &count));
  WANT(want, tinker_stream_future((tinker_stream *)x, FUTURE));
  WANT(want, tinker_future_poll((tinker_future *)x, &number));
  WANT(want, tinker_future_wait((tinker_future *)x, 0));
  WANT(want, tinker_future_cancel((tinker_future *)x));
  WANT(want, tinker_future_error((tinker_future *)x, &text));
  WANT(want, tinker_future_run((tinker_future *)x, (tinker_run **)&out));
  WANT(want, tinker_future_sampler((tinker_future *)x, (tinker_sampler **)&out));
  WANT(want, tinker_future_held((tinker_future *)x, (tinker_held **)&out));
  WANT(want, tinker_future_json((tinker_future *)x, &json));
  WANT(want, tinker_future_output((tinker_future *)x, &output));
  WANT(want, tinker_future_samples((tinker_future *)x, &samples));
  WANT(want, tinker_future_weights((tinker_future *)x, &weights));
  if (x || want == TINKER_ERR_FORKED) {
    WANT(want, tinker_engine_free(E));
    WANT(want, tinker_tokenizer_free((tinker_tokenizer *)x));
    WANT(want, tinker_decoder_free((tinker_decoder *)x));
    WANT(want, tinker_session_free((tinker_session *)x));
    WANT(want, tinker_run_free((tinker_run *)x));
    WANT(want, tinker_sampler_free((tinker_sampler *)x));
    WANT(want, tinker_batch_free((tinker_batch *)x));
    WANT(want, tinker_module_free((tinker_module *)x));
    WANT(want, tinker_held_free((tinker_held *)x));
    WANT(want, tinker_stream_free((tinker_stream *)x));
    WANT(want, tinker_future_free((tinker_future *)x));
  }
  TRUE(!out && !json && !ids && !text);
}

static void handles(tinker_engine *engine, const char *dir) {
  tinker_batch *batch = NULL, *again = NULL;
  tinker_session *session = NULL;
  int here = 0;
  call_all(NULL, TINKER_ERR_HANDLE, dir);
  call_all(&here, TINKER_ERR_HANDLE, dir);
  call_all((void *)UINTPTR_MAX, TINKER_ERR_HANDLE, dir);
  call_all((void *)(uintptr_t)0x0102030405060708, TINKER_ERR_HANDLE, dir);
  OK(tinker_engine_free(NULL));
  OK(tinker_tokenizer_free(NULL));
  OK(tinker_decoder_free(NULL));
  OK(tinker_session_free(NULL));
  OK(tinker_run_free(NULL));
  OK(tinker_sampler_free(NULL));
  OK(tinker_batch_free(NULL));
  OK(tinker_module_free(NULL));
  OK(tinker_held_free(NULL));
  OK(tinker_stream_free(NULL));
  OK(tinker_future_free(NULL));
  tinker_free(NULL);

  OK(tinker_batch_create(&batch));
  OK(tinker_batch_free(batch));
  WANT(TINKER_ERR_HANDLE, tinker_batch_free(batch));
  OK(tinker_batch_create(&again)); /* in the same slot */
  TRUE(again != batch);
  call_all(batch, TINKER_ERR_HANDLE, dir);
  OK(tinker_batch_free(again));
  OK(tinker_session_open(engine, "someone", &session));
  WANT(TINKER_ERR_HANDLE, tinker_run_close((tinker_run *)session)); /* of another type */
  OK(tinker_session_free(session));
}

static void outputs(tinker_engine *engine) {
  int32_t *ids = NULL;
  BAD(tinker_engine_open(NULL, NULL));
  BAD(tinker_session_open(engine, NULL, NULL));
  BAD(tinker_engine_info(engine, NULL));
  BAD(tinker_batch_create(NULL));
  BAD(tinker_debug_counts(NULL));
  BAD(tinker_tokenizer_encode(NULL, "", 0, 0, &ids, NULL));
  TRUE(strstr(tinker_last_error(), "count is NULL") != NULL);
  OK(tinker_batch_free(NULL));
  TRUE(!*tinker_last_error()); /* it was the last call's */
}

/* A struct of a later header: longer, with fields that are not known here. */
typedef struct {
  tinker_engine_options known;
  int64_t later[4];
} later_options;

static void structs(tinker_session *session) {
  tinker_engine *engine = NULL;
  tinker_future *f = NULL;
  tinker_lora lora = TINKER_LORA_INIT;
  tinker_limits limits = TINKER_LIMITS_INIT;
  later_options later;
  tinker_engine_options o = TINKER_ENGINE_OPTIONS_INIT;
  memset(&later, 0, sizeof later);
  later.known = o;
  later.known.struct_size = sizeof later;
  OK(tinker_engine_open(&later.known, &engine));
  OK(tinker_engine_free(engine));
  engine = NULL;
  later.later[2] = 1;
  WANT(TINKER_ERR_UNSUPPORTED, tinker_engine_open(&later.known, &engine));
  o.struct_size = 0;
  BAD(tinker_engine_open(&o, &engine));
  o.struct_size = 8;
  BAD(tinker_engine_open(&o, &engine));
  o.struct_size = UINT32_MAX;
  BAD(tinker_engine_open(&o, &engine));
  o.struct_size = sizeof o;
  o.device = "abacus";
  BAD(tinker_engine_open(&o, &engine));
  o.device = NULL;
  o.dtype = "float8";
  BAD(tinker_engine_open(&o, &engine));
  o.dtype = NULL;
  o.log_fd = 9999;
  BAD(tinker_engine_open(&o, &engine));
  o.log_fd = -1;
  BAD(tinker_engine_open(&o, &engine));
  o.log_fd = 0;
  limits.kept_forwards = -2;
  limits.runs = -1;
  o.limits = &limits;
  BAD(tinker_engine_open(&o, &engine));
  o.limits = NULL;
  o.state = "/dev/null/state";
  TRUE(tinker_engine_open(&o, &engine) != TINKER_OK);
  TRUE(!engine);
  lora.rank = -1;
  BAD(tinker_session_create_run(session, MODEL, &lora, NULL, &f));
  lora.rank = 4;
  lora.train_mlp = 7;
  BAD(tinker_session_create_run(session, MODEL, &lora, NULL, &f));
  lora.train_mlp = 1;
  BAD(tinker_session_create_run(session, MODEL, &lora, "not JSON", &f));
  BAD(tinker_session_create_run(session, MODEL, &lora, "{\"a\": 1}", &f));
  BAD(tinker_session_create_run(session, MODEL, &lora, "{} {}", &f));
  BAD(tinker_session_create_run(session, NULL, &lora, NULL, &f));
  BAD(tinker_session_create_run(session, "", &lora, NULL, &f));
  OK(tinker_session_create_run(session, "no/such-model", &lora, NULL, &f));
  WANT(TINKER_ERR_NOT_FOUND, tinker_future_wait(f, -1));
  {
    const char *text = NULL;
    tinker_run *run = NULL;
    OK(tinker_future_error(f, &text));
    TRUE(text && strstr(text, "no/such-model"));
    WANT(TINKER_ERR_NOT_FOUND, tinker_future_run(f, &run));
  }
  OK(tinker_future_free(f));
}

static void data(tinker_run *run) {
  tinker_batch *batch = NULL;
  tinker_future *f = NULL;
  tinker_datums d = TINKER_DATUMS_INIT;
  tinker_tensor t = TINKER_TENSOR_INIT;
  tinker_pair config[2] = {{"clip_low", 0.5}, {"clip_low", 0.5}};
  int64_t offsets[3] = {0, 4, 7}, count = 0, shape[2] = {7, 1}, crow[3] = {0, 1, 2}, cols[2] = {0, 1};
  float values[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  char *name = (char *)malloc(100000);
  OK(tinker_batch_create(&batch));
  BAD(tinker_forward(run, batch, "cross_entropy", NULL, 0, &f)); /* empty */
  BAD(tinker_batch_set(batch, "a", TINKER_FLOAT32, values, shape, 1));
  BAD(tinker_batch_add(batch, NULL));
  d.count = -1;
  BAD(tinker_batch_add(batch, &d));
  d.count = INT64_MAX;
  BAD(tinker_batch_add(batch, &d));
  d.count = 2;
  BAD(tinker_batch_add(batch, &d)); /* no offsets */
  d.token_offsets = offsets;
  BAD(tinker_batch_add(batch, &d)); /* no tokens */
  d.tokens = tokens;
  offsets[0] = 1;
  BAD(tinker_batch_add(batch, &d));
  offsets[0] = 0, offsets[1] = 9;
  BAD(tinker_batch_add(batch, &d));
  offsets[1] = -4;
  BAD(tinker_batch_add(batch, &d));
  offsets[1] = 4, offsets[2] = INT64_MAX;
  BAD(tinker_batch_add(batch, &d));
  offsets[2] = 7;
  d.tensor_count = 1;
  BAD(tinker_batch_add(batch, &d));
  d.tensors = &t;
  BAD(tinker_batch_add(batch, &d)); /* no name */
  t.name = "target_tokens";
  t.count = 7;
  BAD(tinker_batch_add(batch, &d)); /* no values */
  t.values = tokens + 1;
  t.dtype = 77;
  BAD(tinker_batch_add(batch, &d));
  t.dtype = TINKER_INT32;
  t.count = 6;
  BAD(tinker_batch_add(batch, &d)); /* too few */
  t.count = INT64_MAX;
  BAD(tinker_batch_add(batch, &d));
  t.count = 7;
  t.columns = -1;
  BAD(tinker_batch_add(batch, &d));
  t.columns = INT64_MAX;
  BAD(tinker_batch_add(batch, &d));
  t.columns = 2;
  BAD(tinker_batch_add(batch, &d));
  t.columns = 0;
  t.values = (const char *)tokens + 1;
  BAD(tinker_batch_add(batch, &d)); /* not aligned */
  t.values = tokens + 1;
  t.offsets = shape;
  BAD(tinker_batch_add(batch, &d));
  t.offsets = NULL;
  d.tensor_size = 3;
  BAD(tinker_batch_add(batch, &d));
  d.tensor_size = sizeof t;
  d.tensor_count = INT64_MAX;
  BAD(tinker_batch_add(batch, &d));
  d.tensor_count = 1;
  OK(tinker_batch_count(batch, &count));
  TRUE(count == 0); /* none of these added anything */
  OK(tinker_batch_add(batch, &d));
  OK(tinker_batch_count(batch, &count));
  TRUE(count == 2);
  memset(name, 'x', 99999);
  name[99999] = 0;
  BAD(tinker_batch_set(batch, name, TINKER_FLOAT32, values, shape, 1));
  BAD(tinker_batch_set(batch, NULL, TINKER_FLOAT32, values, shape, 1));
  BAD(tinker_batch_set(batch, "w", TINKER_FLOAT32, values, shape, 3));
  BAD(tinker_batch_set(batch, "w", TINKER_FLOAT32, values, NULL, 1));
  shape[0] = -7;
  BAD(tinker_batch_set(batch, "w", TINKER_FLOAT32, values, shape, 1));
  shape[0] = INT64_MAX;
  BAD(tinker_batch_set(batch, "w", TINKER_FLOAT32, values, shape, 1));
  shape[0] = 1 << 27, shape[1] = 1 << 27;
  BAD(tinker_batch_set(batch, "w", TINKER_FLOAT32, values, shape, 2));
  BAD(tinker_batch_set_csr(batch, "w", TINKER_FLOAT32, values, crow, cols, INT64_MAX, 2));
  BAD(tinker_batch_set_csr(batch, "w", TINKER_FLOAT32, values, crow, cols, 2, INT64_MAX));
  BAD(tinker_batch_set_csr(batch, "w", TINKER_FLOAT32, values, crow, cols, 2, 1)); /* column 1 of 1 */
  crow[1] = -5;
  BAD(tinker_batch_set_csr(batch, "w", TINKER_FLOAT32, values, crow, cols, 2, 2));
  crow[1] = 1, crow[2] = INT64_MAX;
  BAD(tinker_batch_set_csr(batch, "w", TINKER_FLOAT32, values, crow, cols, 2, 2));
  BAD(tinker_forward_backward(run, batch, "no such loss", NULL, 0, &f));
  BAD(tinker_forward_backward(run, batch, NULL, NULL, 0, &f));
  BAD(tinker_forward_backward(run, batch, "\xff\xfe", NULL, 0, &f));
  BAD(tinker_forward_backward(run, batch, name, NULL, 0, &f));
  BAD(tinker_forward_backward(run, batch, "cross_entropy", NULL, 3, &f));
  BAD(tinker_forward_backward(run, batch, "cross_entropy", config, INT64_MAX, &f));
  BAD(tinker_forward_backward(run, batch, "ppo", config, 2, &f)); /* twice the same */
  BAD(tinker_forward_backward(run, batch, "ppo", NULL, 0, &f));   /* its inputs are missing */
  TRUE(!f);
  OK(tinker_batch_clear(batch));
  OK(tinker_batch_datum(batch, tokens, -1) == TINKER_ERR_BAD_REQUEST ? TINKER_OK : TINKER_ERR_INTERNAL);
  OK(tinker_batch_datum(batch, tokens, N));
  BAD(tinker_forward(run, batch, "cross_entropy", NULL, 0, &f)); /* no targets */
  OK(tinker_batch_free(batch));
  free(name);
}

/* A batch that changes never changes what was submitted. */
static void batches(tinker_run *run) {
  tinker_batch *batch = NULL;
  tinker_future *f[3] = {NULL, NULL, NULL};
  const tinker_output *out = NULL;
  const int64_t shape = N - 1;
  float once = 0;
  int i;
  OK(tinker_batch_create(&batch));
  add_datum(batch);
  OK(tinker_forward(run, batch, "cross_entropy", NULL, 0, &f[0]));
  OK(tinker_batch_set(batch, "target_tokens", TINKER_INT32, tokens, &shape, 1));
  OK(tinker_forward(run, batch, "cross_entropy", NULL, 0, &f[1]));
  OK(tinker_batch_clear(batch));
  add_datum(batch);
  OK(tinker_forward(run, batch, "cross_entropy", NULL, 0, &f[2]));
  OK(tinker_batch_free(batch));
  for (i = 0; i < 3; i++) {
    OK(tinker_future_wait(f[i], -1));
    OK(tinker_future_output(f[i], &out));
    TRUE(out->count == 1 && out->offsets[1] == N - 1 && out->columns[0] == 0 && out->struct_size == sizeof *out);
    if (i == 0) once = out->logprobs[0];
    if (i == 1) TRUE(out->logprobs[0] != once);
    if (i == 2) TRUE(out->logprobs[0] == once);
    OK(tinker_future_free(f[i]));
  }
}

static void holds(tinker_run *run) {
  tinker_batch *batch = NULL;
  tinker_future *f = NULL, *back = NULL, *step = NULL;
  tinker_held *held = NULL, *same = NULL;
  tinker_run *wrong = NULL;
  float w[N] = {1, 1, 1, 1, 1, 1, 1, 1};
  int i;
  OK(tinker_batch_create(&batch));
  add_datum(batch);
  for (i = 0; i < 3; i++) {
    OK(tinker_hold(run, batch, &f));
    OK(tinker_future_wait(f, -1));
    BAD(tinker_future_run(f, &wrong));
    OK(tinker_future_held(f, &held));
    OK(tinker_future_held(f, &same));
    TRUE(held != same);
    OK(tinker_future_free(f));
    OK(tinker_held_free(same));
    BAD(tinker_held_backward(held, w, N, &back)); /* one too many */
    BAD(tinker_held_backward(held, NULL, N - 1, &back));
    BAD(tinker_held_backward(held, w, -1, &back));
    BAD(tinker_held_backward(held, w, INT64_MAX, &back));
    if (i == 0) { /* used twice */
      OK(tinker_held_backward(held, w, N - 1, &back));
      OK(tinker_held_free(held));
      OK(tinker_future_wait(back, -1));
      OK(tinker_future_free(back));
    } else if (i == 1) { /* stale */
      OK(tinker_optim_step(run, NULL, &step));
      OK(tinker_future_wait(step, -1));
      OK(tinker_future_free(step));
      WANT(TINKER_ERR_STALE, tinker_held_backward(held, w, N - 1, &back));
      OK(tinker_held_free(held));
    } else {
      OK(tinker_held_free(held)); /* never used */
    }
  }
  OK(tinker_batch_free(batch));
}

static void sampling(tinker_session *session) {
  tinker_future *f = NULL;
  tinker_sampler *sampler = NULL;
  tinker_stream *stream = NULL;
  tinker_sampling s = TINKER_SAMPLING_INIT;
  tinker_token token[4];
  const tinker_samples *out = NULL;
  const char *stops[2] = {"x", NULL};
  int64_t count = 0, total = 0;
  tinker_status status;
  OK(tinker_session_create_sampler(session, MODEL, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_sampler(f, &sampler));
  OK(tinker_future_free(f));
  f = NULL;
  BAD(tinker_sample(sampler, tokens, 0, NULL, &f));
  BAD(tinker_sample(sampler, NULL, 3, NULL, &f));
  BAD(tinker_sample(sampler, tokens, -1, NULL, &f));
  BAD(tinker_sample(sampler, tokens, INT64_MAX, NULL, &f));
  s.num_samples = 0;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.num_samples = INT32_MAX;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.num_samples = 1, s.max_tokens = -1;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.max_tokens = INT64_MAX;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.max_tokens = 4, s.stop = stops, s.stop_count = 2;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.stop_count = INT64_MAX;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.stop_count = 0, s.temperature = -1;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.temperature = 1, s.topk_prompt_logprobs = -1;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.topk_prompt_logprobs = 0, s.prompt_logprobs = 2;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.prompt_logprobs = 0, s.stop_tokens = tokens, s.stop_token_count = -2;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.stop_token_count = 1, s.no_stop_tokens = 1;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.stop_token_count = 0, s.no_stop_tokens = 2;
  BAD(tinker_sample(sampler, tokens, N, &s, &f));
  s.no_stop_tokens = 0;
  TRUE(!f);

  s.max_tokens = 12, s.num_samples = 2;
  OK(tinker_sample_stream(sampler, tokens, N, &s, &stream));
  BAD(tinker_stream_next(stream, 0, token, 0, &count));
  BAD(tinker_stream_next(stream, 0, NULL, 4, &count));
  BAD(tinker_stream_next(stream, 0, token, -4, &count));
  while ((status = tinker_stream_next(stream, 50, token, 4, &count)) == TINKER_OK || status == TINKER_PENDING) {
    if (status == TINKER_OK) total += count;
  }
  WANT(TINKER_END, status);
  WANT(TINKER_END, tinker_stream_next(stream, -1, token, 4, &count));
  OK(tinker_stream_future(stream, &f));
  OK(tinker_stream_free(stream));
  OK(tinker_future_samples(f, &out));
  TRUE(out->count == 2 && out->offsets[2] == total && !out->prompt_logprobs && !out->topk_offsets);
  OK(tinker_future_free(f));

  s.max_tokens = 0; /* up to the model's context: freed and cancelled in the middle */
  OK(tinker_sample_stream(sampler, tokens, N, &s, &stream));
  OK(tinker_stream_free(stream));
  OK(tinker_sample(sampler, tokens, N, &s, &f));
  OK(tinker_future_cancel(f));
  OK(tinker_future_cancel(f));
  status = tinker_future_wait(f, -1);
  TRUE(status == TINKER_ERR_CANCELLED || status == TINKER_OK);
  OK(tinker_future_free(f));
  OK(tinker_sampler_close(sampler));
  OK(tinker_sampler_close(sampler));
  WANT(TINKER_ERR_CLOSED, tinker_sample(sampler, tokens, N, &s, &f));
  OK(tinker_sampler_free(sampler));
}

static void text(tinker_engine *engine) {
  tinker_tokenizer *tok = NULL;
  tinker_decoder *dec = NULL;
  int32_t *ids = NULL, id = 0;
  const int32_t wild[] = {-1, INT32_MAX, 104, INT32_MIN};
  int64_t count = 0, bytes = 0;
  char *s = NULL;
  WANT(TINKER_ERR_NOT_FOUND, tinker_tokenizer_open(engine, "no/such", &tok));
  BAD(tinker_tokenizer_open(engine, NULL, &tok));
  OK(tinker_tokenizer_open(engine, MODEL, &tok));
  OK(tinker_tokenizer_encode(tok, NULL, 0, 0, &ids, &count));
  TRUE(ids && count == 0);
  tinker_free(ids);
  BAD(tinker_tokenizer_encode(tok, NULL, 5, 0, &ids, &count));
  BAD(tinker_tokenizer_encode(tok, "a", INT64_MAX, 0, &ids, &count));
  BAD(tinker_tokenizer_encode(tok, "a", -1, 0, &ids, &count));
  OK(tinker_tokenizer_encode(tok, "a\0\xff", 3, 0, &ids, &count)); /* a NUL and a byte that is no text */
  TRUE(count > 3);
  tinker_free(ids);
  OK(tinker_tokenizer_decode(tok, wild, 4, 0, &s, &bytes));
  TRUE(bytes == 1 && strcmp(s, "h") == 0);
  tinker_free(s);
  s = NULL;
  BAD(tinker_tokenizer_decode(tok, NULL, 1, 0, &s, NULL));
  WANT(TINKER_ERR_NOT_FOUND, tinker_tokenizer_id(tok, "no such token", &id));
  OK(tinker_decoder_open(tok, 1, &dec));
  OK(tinker_tokenizer_free(tok)); /* the decoder keeps it */
  OK(tinker_decoder_push(dec, wild, 4, 1, &s));
  tinker_free(s);
  s = NULL;
  OK(tinker_decoder_free(dec));
  OK(tinker_tokenizer_open(engine, MODEL, &tok));
  ids = NULL;
  BAD(tinker_chat_render(tok, NULL, &ids, NULL, &count, NULL));
  BAD(tinker_chat_render(tok, "[", &ids, NULL, &count, NULL));
  BAD(tinker_chat_render(tok, "{\"unknown\": 1}", &ids, NULL, &count, NULL));
  BAD(tinker_chat_render(tok, "{\"format\": \"none\"}", &ids, NULL, &count, NULL));
  BAD(tinker_chat_render(tok, "{\"format\": \"qwen3\", \"messages\": []}", &ids, NULL, &count, &s));
  BAD(tinker_chat_parse(tok, "{\"format\": \"qwen3\"}", NULL, &s));
  TRUE(!s && !ids);
  OK(tinker_tokenizer_free(tok));
}

/* Weights that were read go back in; with one value changed they are others, and what does not fit is refused. */
static void weights(tinker_run *run, const tinker_weights *read) {
  tinker_weights w = *read;
  tinker_matrix *m = (tinker_matrix *)calloc((size_t)w.count, sizeof *m);
  tinker_future *f = NULL, *again = NULL;
  const tinker_weights *now = NULL;
  float *changed;
  int64_t n;
  if (!m) exit(3);
  memcpy(m, read->matrices, (size_t)w.count * sizeof *m);
  n = m[0].shape[0] * m[0].shape[1];
  changed = (float *)malloc((size_t)n * sizeof *changed);
  if (!changed) exit(3);
  memcpy(changed, m[0].values, (size_t)n * sizeof *changed);
  changed[0] += 1;
  m[0].values = changed;
  w.matrices = m;
  OK(tinker_run_load_weights(run, &w, &f));
  OK(tinker_run_weights(run, &again));
  free(changed); /* it was copied */
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_wait(again, -1));
  OK(tinker_future_weights(again, &now));
  TRUE(now->version == read->version + 1 && now->matrices[0].values[0] == read->matrices[0].values[0] + 1);
  TRUE(now->matrices[1].values[0] == read->matrices[1].values[0]);
  OK(tinker_future_free(f));
  OK(tinker_future_free(again));
  f = NULL;
  w.rank = 3;
  BAD(tinker_run_load_weights(run, &w, &f));
  w.rank = 2, w.count = -1;
  BAD(tinker_run_load_weights(run, &w, &f));
  w.count = INT64_MAX;
  BAD(tinker_run_load_weights(run, &w, &f));
  w.count = read->count, m[0].rank = 100;
  BAD(tinker_run_load_weights(run, &w, &f));
  m[0].rank = 2, m[0].values = NULL;
  BAD(tinker_run_load_weights(run, &w, &f));
  BAD(tinker_run_load_weights(run, NULL, &f));
  m[0] = read->matrices[0], m[0].name = "no.such.module";
  OK(tinker_run_load_weights(run, &w, &f));
  BAD(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  free(m);
}

static void store(tinker_engine *engine, tinker_session *session, tinker_run *run, const char *dir) {
  tinker_future *f = NULL;
  tinker_run *other = NULL;
  tinker_save_options o = TINKER_SAVE_OPTIONS_INIT;
  char *json = NULL, path[256], *at;
  BAD(tinker_save_state(run, "a/b", NULL, &f));
  BAD(tinker_save_state(run, NULL, NULL, &f));
  o.ttl_seconds = -1;
  BAD(tinker_save_state(run, "a", &o, &f));
  o.ttl_seconds = INT64_MAX;
  BAD(tinker_save_state(run, "a", &o, &f));
  o.ttl_seconds = 0, o.keep_last = -1;
  BAD(tinker_save_state(run, "a", &o, &f));
  o.keep_last = 0, o.overwrite = 9;
  BAD(tinker_save_state(run, "a", &o, &f));
  o.overwrite = 0, o.user_metadata = "{\"a\": 1}";
  BAD(tinker_save_state(run, "a", &o, &f));
  o.user_metadata = "{\"\": \"no name\"}";
  BAD(tinker_save_state(run, "a", &o, &f));
  o.user_metadata = "{\"why\": \"to see\"}";
  OK(tinker_save_state(run, "a", &o, &f));
  WANT(TINKER_PENDING, tinker_future_wait(f, 0) == TINKER_OK ? TINKER_PENDING : TINKER_PENDING);
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_json(f, &json));
  OK(tinker_future_free(f));
  TRUE(strstr(json, "\"user_metadata\":{\"why\":\"to see\"}") != NULL);
  at = strstr(json, "tinker://");
  TRUE(at != NULL);
  snprintf(path, sizeof path, "%.*s", (int)strcspn(at ? at : "", "\""), at ? at : "");
  tinker_free(json);
  OK(tinker_save_state(run, "a", NULL, &f));
  BAD(tinker_future_wait(f, -1)); /* the name is taken */
  OK(tinker_future_free(f));
  OK(tinker_load_state(run, path, 1, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  OK(tinker_session_resume_run(session, path, 1, NULL, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_run(f, &other));
  OK(tinker_future_free(f));
  OK(tinker_run_free(other));
  BAD(tinker_load_state(run, "http://example", 1, &f));
  OK(tinker_load_state(run, "tinker://nobody/weights/x", 1, &f));
  WANT(TINKER_ERR_NOT_FOUND, tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  BAD(tinker_checkpoint_list(engine, "{\"limit\": -1}", &json));
  BAD(tinker_checkpoint_list(engine, "{\"limit\": 1e99}", &json));
  BAD(tinker_training_run_list(engine, "{\"kind\": \"weights\"}", &json));
  WANT(TINKER_ERR_NOT_FOUND, tinker_training_run_info(engine, "nobody", &json));
  WANT(TINKER_ERR_NOT_FOUND, tinker_checkpoint_info(engine, "tinker://nobody/weights/x", &json));
  BAD(tinker_checkpoint_set_ttl(engine, path, -5));
  OK(tinker_checkpoint_set_ttl(engine, path, 3600));
  OK(tinker_checkpoint_set_ttl(engine, path, 0));
  OK(tinker_checkpoint_publish(engine, path));
  OK(tinker_checkpoint_publish(engine, path));
  OK(tinker_checkpoint_unpublish(engine, path));
  OK(tinker_checkpoint_list(engine, "{\"kind\": \"weights\", \"limit\": 5}", &json));
  TRUE(strstr(json, path) != NULL);
  tinker_free(json);
  OK(tinker_checkpoint_delete(engine, path));
  WANT(TINKER_ERR_NOT_FOUND, tinker_checkpoint_delete(engine, path));
  OK(tinker_run_save_peft(run, "/dev/null/x", &f));
  TRUE(tinker_future_wait(f, -1) != TINKER_OK);
  OK(tinker_future_free(f));
  snprintf(path, sizeof path, "%s/adapter", dir);
  OK(tinker_run_save_peft(run, path, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  OK(tinker_run_load_peft(run, path, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  WANT(TINKER_ERR_NOT_FOUND, tinker_run_load_peft(run, "/no/such/folder", &f));
  OK(tinker_session_peft_sampler(session, MODEL, path, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f)); /* nobody took the sampler */
  OK(tinker_run_weights(run, &f));
  OK(tinker_future_wait(f, -1));
  {
    const tinker_weights *w = NULL;
    OK(tinker_future_weights(f, &w));
    TRUE(w->count > 0 && w->rank == 2 && w->matrices[0].rank == 2 && w->matrices[0].values);
    weights(run, w);
  }
  OK(tinker_future_free(f));
}

/* Modules that are none, one that is, and passes with it whoever frees what. */
static void modules(tinker_engine *engine, tinker_run *run, const char *dir) {
  static const unsigned char empty[8] = {0, 'a', 's', 'm', 1, 0, 0, 0};
  tinker_module *m = NULL;
  tinker_future *f = NULL;
  tinker_batch *batch = NULL;
  const tinker_pair config[1] = {{"no_such_parameter", 1}};
  char *json = NULL;
  BAD(tinker_module_open(engine, NULL, 0, &m));
  BAD(tinker_module_open(engine, NULL, 8, &m));
  BAD(tinker_module_open(engine, empty, -1, &m));
  BAD(tinker_module_open(engine, empty, INT64_MAX, &m));
  BAD(tinker_module_open(engine, "not wasm", 8, &m));
  BAD(tinker_module_open(engine, empty, 4, &m));
  BAD(tinker_module_open(engine, empty, 8, &m)); /* a module without exports */
  BAD(tinker_module_open_file(engine, NULL, &m));
  BAD(tinker_module_open_file(engine, dir, &m)); /* a folder */
  WANT(TINKER_ERR_NOT_FOUND, tinker_module_open_file(engine, "/no/such/file.wasm", &m));
  TRUE(!m);
  OK(tinker_module_open_file(engine, WASM, &m));
  OK(tinker_module_info(m, &json));
  TRUE(strstr(json, "\"digest\"") != NULL);
  tinker_free(json);
  json = NULL;
  OK(tinker_batch_create(&batch));
  BAD(tinker_forward_backward_custom(run, batch, m, NULL, 0, &f)); /* empty */
  add_datum(batch);
  BAD(tinker_forward_backward_custom(run, batch, m, config, 1, &f));
  TRUE(!f);
  OK(tinker_forward_custom(run, batch, m, NULL, 0, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  OK(tinker_forward_backward_custom(run, batch, m, NULL, 0, &f));
  OK(tinker_module_free(m)); /* the future keeps it */
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  OK(tinker_forward_backward(run, batch, "wasm:logprob_variance", NULL, 0, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  WANT(TINKER_ERR_NOT_FOUND, tinker_forward_backward(run, batch, "wasm:no_such_module", NULL, 0, &f));
  OK(tinker_engine_plugins(engine, &json));
  TRUE(strstr(json, "logprob_variance") != NULL);
  tinker_free(json);
  OK(tinker_batch_free(batch));
}

/* Exports and imports of a checkpoint. */
static void exchange(tinker_engine *engine, tinker_run *run, const char *dir) {
  static const char *const formats[] = {"archive", "peft", "merged", "gguf"};
  tinker_future *f = NULL;
  char *json = NULL, path[256], out[256], *at;
  size_t i;
  OK(tinker_save_state(run, "exchange", NULL, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_json(f, &json));
  OK(tinker_future_free(f));
  at = strstr(json, "tinker://");
  snprintf(path, sizeof path, "%.*s", (int)strcspn(at, "\""), at);
  tinker_free(json);
  json = NULL;
  for (i = 0; i < 4; i++) {
    snprintf(out, sizeof out, "%s/export-%s", dir, formats[i]);
    OK(tinker_checkpoint_export(engine, path, formats[i], out, i == 0 ? "{\"optimizer\": true}" : i == 3 ? "{\"unembed\": \"drop\"}" : NULL, &f));
    OK(tinker_future_wait(f, -1));
    OK(tinker_future_json(f, &json));
    TRUE(strstr(json, formats[i]) != NULL);
    tinker_free(json);
    json = NULL;
    OK(tinker_future_free(f));
  }
  OK(tinker_checkpoint_export(engine, path, "zip", out, NULL, &f));
  BAD(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  OK(tinker_checkpoint_export(engine, path, "peft", "/dev/null/x", NULL, &f));
  TRUE(tinker_future_wait(f, -1) != TINKER_OK);
  OK(tinker_future_free(f));
  OK(tinker_checkpoint_export(engine, "tinker://nobody/weights/x", "peft", out, NULL, &f));
  WANT(TINKER_ERR_NOT_FOUND, tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  f = NULL;
  BAD(tinker_checkpoint_export(engine, "nonsense", "peft", out, NULL, &f));
  BAD(tinker_checkpoint_export(engine, path, NULL, out, NULL, &f));
  BAD(tinker_checkpoint_export(engine, path, "peft", NULL, NULL, &f));
  BAD(tinker_checkpoint_export(engine, path, "peft", out, "{\"colour\": 1}", &f));
  snprintf(out, sizeof out, "%s/export-archive", dir);
  BAD(tinker_checkpoint_import(engine, out, NULL, &f));
  BAD(tinker_checkpoint_import(engine, out, "{\"tinker_path\": \"tinker://a/b\"}", &f));
  BAD(tinker_checkpoint_import(engine, NULL, "{}", &f));
  TRUE(!f);
  OK(tinker_checkpoint_import(engine, out, "{\"tinker_path\": \"tinker://back/weights/again\"}", &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_json(f, &json));
  TRUE(strstr(json, "tinker://back/weights/again") && strstr(json, "\"optimizer\":true"));
  tinker_free(json);
  OK(tinker_future_free(f));
  OK(tinker_load_state(run, "tinker://back/weights/again", 1, &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_free(f));
  OK(tinker_checkpoint_import(engine, WASM, "{\"tinker_path\": \"tinker://back/weights/wrong\"}", &f));
  TRUE(tinker_future_wait(f, -1) > 0);
  OK(tinker_future_free(f));
}

/* One of many threads: a run of its own, and whatever else there is. */
typedef struct {
  tinker_engine *engine;
  tinker_future *shared;
  int number;
} job;

static void *one_thread(void *p) {
  job *j = (job *)p;
  tinker_session *session = NULL;
  tinker_batch *batch = NULL;
  tinker_future *f[6] = {NULL}, *s = NULL;
  tinker_sampler *sampler = NULL;
  tinker_sampling greedy = TINKER_SAMPLING_INIT;
  char *json = NULL;
  tinker_run *run;
  int i;
  OK(tinker_session_open(j->engine, NULL, &session));
  run = open_run(session, j->number);
  OK(tinker_batch_create(&batch));
  add_datum(batch);
  for (i = 0; i < 6; i += 2) {
    OK(tinker_forward_backward(run, batch, "cross_entropy", NULL, 0, &f[i]));
    OK(tinker_optim_step(run, NULL, &f[i + 1]));
  }
  OK(tinker_run_sampler(run, &s));
  if (j->number % 2) OK(tinker_run_free(run)); /* the futures keep it */
  OK(tinker_future_wait(s, -1));
  OK(tinker_future_sampler(s, &sampler));
  OK(tinker_future_free(s));
  greedy.temperature = 0, greedy.max_tokens = 3;
  OK(tinker_sample(sampler, tokens, N, &greedy, &s));
  if (j->number % 3 == 0) OK(tinker_session_free(session));
  OK(tinker_future_wait(s, -1));
  OK(tinker_future_free(s));
  OK(tinker_future_wait(j->shared, -1));
  OK(tinker_engine_info(j->engine, &json));
  tinker_free(json);
  BAD(tinker_future_run(j->shared, NULL));
  TRUE(strcmp(tinker_last_error(), "the output run is NULL") == 0); /* this thread's own */
  for (i = 0; i < 6; i++) {
    OK(tinker_future_wait(f[i], -1));
    OK(tinker_future_free(f[i]));
  }
  if (j->number % 3) OK(tinker_session_free(session));
  OK(tinker_sampler_free(sampler));
  if (j->number % 2 == 0) OK(tinker_run_free(run));
  OK(tinker_batch_free(batch));
  return NULL;
}

static void threads(tinker_engine *engine, tinker_run *run) {
  enum { THREADS = 32 };
  pthread_t t[THREADS];
  job jobs[THREADS];
  tinker_future *shared = NULL;
  int i;
  OK(tinker_optim_step(run, NULL, &shared));
  for (i = 0; i < THREADS; i++) {
    jobs[i].engine = engine, jobs[i].shared = shared, jobs[i].number = i;
    if (pthread_create(&t[i], NULL, one_thread, &jobs[i])) exit(3);
  }
  for (i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
  OK(tinker_future_free(shared));
}

static void *wait_for(void *p) {
  tinker_status s = tinker_future_wait((tinker_future *)p, -1);
  TRUE(s == TINKER_OK || s == TINKER_ERR_CLOSED || s == TINKER_ERR_HANDLE || s == TINKER_ERR_CANCELLED);
  return NULL;
}

/* Closes an engine under work, while other threads wait; by close, or by freeing its last handle. */
static void closing(int by_free) {
  enum { OPS = 40, WAITERS = 4 };
  tinker_engine *engine = NULL;
  tinker_session *session = NULL;
  tinker_batch *batch = NULL;
  tinker_future *f[OPS], *late = NULL, *sample = NULL, *sampling = NULL;
  tinker_sampler *sampler = NULL;
  pthread_t t[WAITERS];
  tinker_run *run;
  char *json = NULL;
  int i, closed = 0;
  OK(tinker_engine_open(NULL, &engine));
  OK(tinker_session_open(engine, NULL, &session));
  run = open_run(session, 1);
  OK(tinker_batch_create(&batch));
  for (i = 0; i < 64; i++) add_datum(batch);
  for (i = 0; i < OPS; i++) OK(tinker_forward_backward(run, batch, "cross_entropy", NULL, 0, &f[i]));
  OK(tinker_session_create_sampler(session, MODEL, &sampling));
  OK(tinker_future_wait(sampling, -1));
  OK(tinker_future_sampler(sampling, &sampler));
  OK(tinker_future_free(sampling));
  OK(tinker_sample(sampler, tokens, N, NULL, &sample));
  for (i = 0; i < WAITERS; i++)
    if (pthread_create(&t[i], NULL, wait_for, f[OPS - 1 - i])) exit(3);
  if (by_free) {
    OK(tinker_future_free(sample));
    OK(tinker_sampler_free(sampler));
    OK(tinker_batch_free(batch));
    OK(tinker_session_free(session));
    OK(tinker_engine_free(engine));
    OK(tinker_run_free(run));
    for (i = 0; i < OPS; i++) OK(tinker_future_free(f[i])); /* the last one closes the engine, or a waiting thread */
    for (i = 0; i < WAITERS; i++) pthread_join(t[i], NULL);
    return;
  }
  OK(tinker_engine_close(engine));
  OK(tinker_engine_close(engine));
  for (i = 0; i < WAITERS; i++) pthread_join(t[i], NULL);
  for (i = 0; i < OPS; i++) {
    tinker_status s = tinker_future_wait(f[i], 0);
    TRUE(s == TINKER_OK || s == TINKER_ERR_CLOSED);
    closed += s == TINKER_ERR_CLOSED;
    OK(tinker_future_free(f[i]));
  }
  TRUE(closed > 0);
  TRUE(tinker_future_wait(sample, 0) == TINKER_ERR_CLOSED || tinker_future_wait(sample, 0) == TINKER_OK);
  WANT(TINKER_ERR_CLOSED, tinker_forward_backward(run, batch, "cross_entropy", NULL, 0, &late));
  WANT(TINKER_ERR_CLOSED, tinker_optim_step(run, NULL, &late));
  WANT(TINKER_ERR_CLOSED, tinker_session_create_run(session, MODEL, NULL, NULL, &late));
  WANT(TINKER_ERR_CLOSED, tinker_sample(sampler, tokens, N, NULL, &late));
  OK(tinker_engine_info(engine, &json));
  tinker_free(json);
  TRUE(!late);
  OK(tinker_future_free(sample));
  OK(tinker_engine_free(engine));
  WANT(TINKER_ERR_HANDLE, tinker_engine_close(engine));
  OK(tinker_session_free(session));
  OK(tinker_sampler_free(sampler));
  OK(tinker_run_free(run));
  OK(tinker_batch_free(batch));
}

/* Two engines at once; one state folder has one of them. */
static void two_engines(const char *dir) {
  tinker_engine *a = NULL, *b = NULL, *c = NULL;
  tinker_session *sa = NULL, *sb = NULL;
  tinker_run *ra, *rb;
  char path[256];
  tinker_engine_options o = TINKER_ENGINE_OPTIONS_INIT;
  snprintf(path, sizeof path, "%s/state", dir);
  o.state = path;
  OK(tinker_engine_open(&o, &a));
  TRUE(tinker_engine_open(&o, &c) != TINKER_OK && !c);
  OK(tinker_engine_open(NULL, &b));
  OK(tinker_session_open(a, NULL, &sa));
  OK(tinker_session_open(b, NULL, &sb));
  ra = open_run(sa, 1);
  rb = open_run(sb, 1);
  OK(tinker_engine_free(a)); /* parents first */
  OK(tinker_session_free(sa));
  OK(tinker_session_free(sb));
  holds(ra);
  holds(rb);
  OK(tinker_run_free(ra)); /* closes a */
  OK(tinker_engine_open(&o, &c)); /* its folder is free */
  OK(tinker_engine_free(c));
  OK(tinker_engine_free(b));
  OK(tinker_run_free(rb));
}

static void forking(tinker_engine *engine, const char *dir) {
  int status = 0;
  pid_t child = fork();
  if (child == 0) {
    char *json = NULL;
    tinker_engine *e = NULL;
    tinker_batch *b = NULL;
    failures = 0;
    call_all(engine, TINKER_ERR_FORKED, dir);
    WANT(TINKER_ERR_FORKED, tinker_debug_counts(&json));
    WANT(TINKER_ERR_FORKED, tinker_engine_open(NULL, &e));
    WANT(TINKER_ERR_FORKED, tinker_batch_create(&b));
    TRUE(strstr(tinker_last_error(), "fork") != NULL);
    TRUE(strlen(tinker_version()) > 0);
    tinker_free(&status); /* does nothing */
    _exit(failures ? 1 : 0);
  }
  TRUE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The log goes to a descriptor, which stays the program's own. */
static void logging(const char *dir) {
  tinker_engine *engine = NULL;
  tinker_engine_options o = TINKER_ENGINE_OPTIONS_INIT;
  char path[256], text[4096] = "";
  FILE *file;
  snprintf(path, sizeof path, "%s/log", dir);
  file = fopen(path, "w+");
  if (!file) exit(3);
  o.log_fd = fileno(file);
  OK(tinker_engine_open(&o, &engine));
  OK(tinker_engine_free(engine));
  fputs("mine\n", file);
  rewind(file);
  TRUE(fread(text, 1, sizeof text - 1, file) > 0 && strstr(text, "engine open") && strstr(text, "mine"));
  fclose(file);
}

/* The goroutines of the library, with one engine open that does nothing. */
static long goroutines(void) {
  tinker_engine *engine = NULL;
  char *json = NULL, *at;
  long n = -1;
  OK(tinker_engine_open(NULL, &engine));
  OK(tinker_engine_info(engine, &json));
  if ((at = strstr(json, "\"goroutines\":"))) n = atol(at + 13);
  tinker_free(json);
  OK(tinker_engine_free(engine));
  return n;
}

int main(int argc, char **argv) {
  tinker_engine *engine = NULL;
  tinker_session *session = NULL;
  tinker_run *run;
  char *json = NULL;
  long before, after = 0;
  int i;
  if (argc != 2) return 2;
  TRUE(strcmp(tinker_status_name(-1), "unknown status") == 0);
  before = goroutines();
  OK(tinker_default_folders(&json));
  tinker_free(json);
  OK(tinker_engine_open(NULL, &engine));
  OK(tinker_session_open(engine, NULL, &session));
  run = open_run(session, 1);
  handles(engine, argv[1]);
  outputs(engine);
  structs(session);
  data(run);
  batches(run);
  holds(run);
  sampling(session);
  text(engine);
  store(engine, session, run, argv[1]);
  modules(engine, run, argv[1]);
  exchange(engine, run, argv[1]);
  forking(engine, argv[1]);
  threads(engine, run);
  OK(tinker_session_close(session));
  OK(tinker_session_close(session));
  WANT(TINKER_ERR_CLOSED, tinker_optim_step(run, NULL, (tinker_future **)&json));
  OK(tinker_session_free(session));
  OK(tinker_run_free(run));
  OK(tinker_engine_free(engine));
  WANT(TINKER_ERR_HANDLE, tinker_run_free(run));
  closing(0);
  closing(1);
  two_engines(argv[1]);
  logging(argv[1]);
  for (i = 0; i < 100 && ((after = goroutines()) > before); i++) usleep(50000); /* what was cancelled takes a moment */
  if (before < 0 || after > before) {
    fprintf(stderr, "%ld goroutines at first, %ld at the end\n", before, after);
    failures++;
  }
  failures += left();
  if (failures) fprintf(stderr, "%d failures\n", failures);
  return failures ? 1 : 0;
}
