/* Does what lines of standard input say through the C interface, and prints the results: the Go test compares them with those of the Go
 * interface. Floats are the hexadecimal of their bits, both ways. An operation that fails prints "error STATUS MESSAGE". */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinker.h"

static char *line, *cursor;

/* The next word of the line; "" at its end. */
static const char *word(void) {
  char *w;
  while (*cursor == ' ') cursor++;
  w = cursor;
  while (*cursor && *cursor != ' ') cursor++;
  if (*cursor) *cursor++ = 0;
  return w;
}

static int64_t integer(void) { return strtoll(word(), NULL, 10); }
static float f32(void) {
  uint32_t bits = (uint32_t)strtoul(word(), NULL, 16);
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
static double f64(void) {
  uint64_t bits = strtoull(word(), NULL, 16);
  double v;
  memcpy(&v, &bits, sizeof v);
  return v;
}
static void put32(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  printf(" %08" PRIx32, bits);
}
static void put64(double v) {
  uint64_t bits;
  memcpy(&bits, &v, sizeof bits);
  printf(" %016" PRIx64, bits);
}

/* The rest of the line, with \n, \\ and \xNN undone, in place; *n is its length. */
static char *rest(int64_t *n) {
  char *in = cursor, *out = cursor, *start = cursor;
  for (; *in; in++) {
    if (*in == '\\' && in[1] == 'n') *out++ = '\n', in++;
    else if (*in == '\\' && in[1] == '\\') *out++ = '\\', in++;
    else *out++ = *in;
  }
  *out = 0;
  *n = out - start;
  return start;
}

static void *get(size_t bytes) {
  void *p = calloc(bytes + 1, 1);
  if (!p) exit(3);
  return p;
}

static int32_t *ids(int64_t *n) {
  int32_t *list;
  int64_t i;
  *n = integer();
  list = (int32_t *)get((size_t)*n * sizeof *list);
  for (i = 0; i < *n; i++) list[i] = (int32_t)integer();
  return list;
}

static tinker_engine *engine;
static tinker_session *session;
static tinker_tokenizer *tokenizer;
static tinker_run *run;
static tinker_sampler *sampler;
static tinker_batch *batch;

/* Reports a failure; 0 when there is none. */
static int failed(tinker_status s) {
  if (s == TINKER_OK) return 0;
  printf("error %s %s\n", tinker_status_name(s), tinker_last_error());
  return 1;
}

static int ended(tinker_status submitted, tinker_future **f) { return !failed(submitted) && !failed(tinker_future_wait(*f, -1)); }

static void show_output(tinker_future *f) {
  const tinker_output *o;
  int64_t i, j;
  if (failed(tinker_future_output(f, &o))) return;
  for (i = 0; i < o->count; i++) {
    printf("logprobs %" PRId64 " columns %" PRId64, i, o->columns[i]);
    for (j = o->offsets[i]; j < o->offsets[i + 1]; j++) put32(o->logprobs[j]);
    putchar('\n');
  }
  for (i = 0; i < o->metric_count; i++) {
    printf("metric %s", o->metrics[i].name);
    put64(o->metrics[i].value);
    putchar('\n');
  }
}

static void show_samples(tinker_future *f) {
  const tinker_samples *o;
  int64_t i, j;
  if (failed(tinker_future_samples(f, &o))) return;
  for (i = 0; i < o->count; i++) {
    printf("sequence %" PRId64 " %s", i, o->stop_reasons[i] == TINKER_STOP ? "stop" : "length");
    for (j = o->offsets[i]; j < o->offsets[i + 1]; j++) {
      printf(" %" PRId32, o->tokens[j]);
      put32(o->logprobs[j]);
      put32(o->raw_logprobs[j]);
    }
    putchar('\n');
  }
  if (o->prompt_logprobs) {
    printf("prompt");
    for (i = 0; i < o->prompt_count; i++)
      if (o->prompt_logprobs[i] == o->prompt_logprobs[i]) put32(o->prompt_logprobs[i]);
      else printf(" none");
    putchar('\n');
  }
  for (i = 0; o->topk_offsets && i < o->prompt_count; i++) {
    printf("topk %" PRId64, i);
    for (j = o->topk_offsets[i]; j < o->topk_offsets[i + 1]; j++) {
      printf(" %" PRId32, o->topk_tokens[j]);
      put32(o->topk_logprobs[j]);
    }
    putchar('\n');
  }
}

static void do_tensor(void) {
  const char *name = word(), *type = word();
  int32_t dtype = *type == 'f' ? TINKER_FLOAT32 : *type == 'i' ? TINKER_INT32 : TINKER_INT64, rank = (int32_t)integer();
  int64_t shape[2] = {1, 1}, n = 1, i;
  char *values;
  for (i = 0; i < rank; i++) shape[i] = integer(), n *= shape[i];
  values = (char *)get((size_t)n * 8);
  for (i = 0; i < n; i++) {
    if (dtype == TINKER_FLOAT32) ((float *)(void *)values)[i] = f32();
    else if (dtype == TINKER_INT32) ((int32_t *)(void *)values)[i] = (int32_t)integer();
    else ((int64_t *)(void *)values)[i] = integer();
  }
  failed(tinker_batch_set(batch, name, dtype, values, shape, rank));
  free(values);
}

static void do_csr(void) {
  const char *name = word();
  int64_t rows = integer(), columns = integer(), n = integer(), i;
  int64_t *crow = (int64_t *)get((size_t)(rows + 1) * 8), *cols = (int64_t *)get((size_t)n * 8);
  float *values = (float *)get((size_t)n * 4);
  for (i = 0; i <= rows; i++) crow[i] = integer();
  for (i = 0; i < n; i++) cols[i] = integer();
  for (i = 0; i < n; i++) values[i] = f32();
  failed(tinker_batch_set_csr(batch, name, TINKER_FLOAT32, values, crow, cols, rows, columns));
  free(crow), free(cols), free(values);
}

static void do_pass(int backward) {
  tinker_future *f = NULL;
  char loss[128];
  tinker_pair config[8];
  char names[8][64];
  int64_t n, i;
  snprintf(loss, sizeof loss, "%s", word());
  n = integer();
  for (i = 0; i < n && i < 8; i++) {
    snprintf(names[i], sizeof names[i], "%s", word());
    config[i].name = names[i];
    config[i].value = f64();
  }
  if (ended((backward ? tinker_forward_backward : tinker_forward)(run, batch, loss, config, n, &f), &f)) show_output(f);
  tinker_future_free(f);
}

static void do_hold(void) {
  tinker_future *f = NULL, *back = NULL;
  tinker_held *held = NULL;
  int64_t n = integer(), i;
  float *w = (float *)get((size_t)n * sizeof *w);
  for (i = 0; i < n; i++) w[i] = f32();
  if (ended(tinker_hold(run, batch, &f), &f)) {
    show_output(f);
    if (!failed(tinker_future_held(f, &held)) && ended(tinker_held_backward(held, w, n, &back), &back)) show_output(back);
  }
  tinker_held_free(held), tinker_future_free(f), tinker_future_free(back);
  free(w);
}

static void do_optim(void) {
  tinker_future *f = NULL;
  tinker_adam a = TINKER_ADAM_INIT;
  a.learning_rate = f64(), a.beta1 = f64(), a.beta2 = f64(), a.eps = f64(), a.weight_decay = f64(), a.grad_clip_norm = f64();
  if (ended(tinker_optim_step(run, &a, &f), &f)) show_output(f);
  tinker_future_free(f);
}

static void do_run(void) {
  tinker_future *f = NULL;
  tinker_lora l = TINKER_LORA_INIT;
  char name[128];
  snprintf(name, sizeof name, "%s", word());
  l.rank = (int32_t)integer(), l.has_seed = 1, l.seed = integer();
  l.train_attn = (int32_t)integer(), l.train_mlp = (int32_t)integer(), l.train_unembed = (int32_t)integer();
  tinker_run_free(run);
  run = NULL;
  if (ended(tinker_session_create_run(session, name, &l, NULL, &f), &f) && !failed(tinker_future_run(f, &run))) puts("run");
  tinker_future_free(f);
}

static void do_sampler(void) {
  tinker_future *f = NULL;
  const char *name = word();
  tinker_sampler_free(sampler);
  sampler = NULL;
  if (ended(*name ? tinker_session_create_sampler(session, name, &f) : tinker_run_sampler(run, &f), &f) && !failed(tinker_future_sampler(f, &sampler))) puts("sampler");
  tinker_future_free(f);
}

static void do_sample(void) {
  tinker_future *f = NULL;
  tinker_sampling s = TINKER_SAMPLING_INIT;
  int32_t *stops, *prompt;
  int64_t n;
  s.num_samples = (int32_t)integer(), s.max_tokens = integer(), s.has_seed = 1, s.seed = integer();
  s.temperature = f64(), s.top_k = (int32_t)integer(), s.top_p = f64();
  s.prompt_logprobs = (int32_t)integer(), s.topk_prompt_logprobs = (int32_t)integer();
  s.no_stop_tokens = (int32_t)integer();
  stops = ids(&s.stop_token_count);
  s.stop_tokens = stops;
  prompt = ids(&n);
  if (ended(tinker_sample(sampler, prompt, n, &s, &f), &f)) show_samples(f);
  tinker_future_free(f);
  free(stops), free(prompt);
}

static void do_logprobs(void) {
  tinker_future *f = NULL;
  int64_t n;
  int32_t *prompt = ids(&n);
  if (ended(tinker_compute_logprobs(sampler, prompt, n, &f), &f)) show_samples(f);
  tinker_future_free(f);
  free(prompt);
}

/* Prints what is the same whenever the same is saved: a checkpoint's digest. */
static void show_checkpoint(tinker_future *f) {
  char *json = NULL, *at;
  if (failed(tinker_future_json(f, &json))) return;
  at = strstr(json, "\"sha256\":\"");
  printf("checkpoint %.64s\n", at ? at + 10 : "none");
  tinker_free(json);
}

static void do_save(void) {
  tinker_future *f = NULL;
  if (ended(tinker_save_state(run, word(), NULL, &f), &f)) show_checkpoint(f);
  tinker_future_free(f);
}

/* Loads a state of the run's own. */
static void do_load(void) {
  tinker_future *f = NULL;
  char *json = NULL, *id, path[256];
  int32_t optimizer = (int32_t)integer();
  if (failed(tinker_run_info(run, &json))) return;
  id = strstr(json, "\"model_id\":\"") + 12;
  snprintf(path, sizeof path, "tinker://%.*s/weights/%s", (int)strcspn(id, "\""), id, word());
  tinker_free(json);
  if (ended(tinker_load_state(run, path, optimizer, &f), &f)) show_checkpoint(f);
  tinker_future_free(f);
}

static void show_ids(const char *what, const int32_t *list, int64_t n) {
  int64_t i;
  printf("%s", what);
  for (i = 0; i < n; i++) printf(" %" PRId32, list[i]);
  putchar('\n');
}

static void do_encode(void) {
  int32_t special = (int32_t)integer(), *list = NULL;
  int64_t bytes, n = 0;
  char *text = rest(&bytes);
  if (failed(tinker_tokenizer_encode(tokenizer, text, bytes, special, &list, &n))) return;
  show_ids("ids", list, n);
  tinker_free(list);
}

static void do_decode(void) {
  int32_t skip = (int32_t)integer();
  int64_t n, bytes = 0, i;
  int32_t *list = ids(&n);
  char *text = NULL;
  if (!failed(tinker_tokenizer_decode(tokenizer, list, n, skip, &text, &bytes))) {
    printf("bytes");
    for (i = 0; i < bytes; i++) printf(" %02x", (unsigned char)text[i]);
    putchar('\n');
    tinker_free(text);
  }
  free(list);
}

static void do_render(void) {
  int32_t *list = NULL;
  uint8_t *trained = NULL;
  int64_t bytes, n = 0, i;
  char *request = rest(&bytes);
  if (failed(tinker_chat_render(tokenizer, request, &list, &trained, &n, NULL))) return;
  show_ids("ids", list, n);
  printf("trained");
  for (i = 0; i < n; i++) printf(" %d", trained[i]);
  putchar('\n');
  tinker_free(list), tinker_free(trained);
}

static char *read_line(void) {
  static size_t room;
  ssize_t n = getline(&line, &room, stdin);
  if (n < 0) return NULL;
  if (n > 0 && line[n - 1] == '\n') line[n - 1] = 0;
  return line;
}

int main(void) {
  char *counts = NULL;
  int64_t n;
  while ((cursor = read_line())) {
    const char *op = word();
    if (!strcmp(op, "engine")) {
      tinker_engine_options o = TINKER_ENGINE_OPTIONS_INIT;
      o.device = word();
      if (failed(tinker_engine_open(&o, &engine)) || failed(tinker_session_open(engine, NULL, &session)) || failed(tinker_batch_create(&batch))) return 1;
    } else if (!strcmp(op, "tokenizer")) failed(tinker_tokenizer_open(engine, word(), &tokenizer));
    else if (!strcmp(op, "case")) printf("case %s\n", word());
    else if (!strcmp(op, "create_run")) do_run();
    else if (!strcmp(op, "clear")) failed(tinker_batch_clear(batch));
    else if (!strcmp(op, "datum")) {
      int32_t *list = ids(&n);
      failed(tinker_batch_datum(batch, list, n));
      free(list);
    } else if (!strcmp(op, "tensor")) do_tensor();
    else if (!strcmp(op, "csr")) do_csr();
    else if (!strcmp(op, "forward_backward")) do_pass(1);
    else if (!strcmp(op, "forward")) do_pass(0);
    else if (!strcmp(op, "hold")) do_hold();
    else if (!strcmp(op, "optim_step")) do_optim();
    else if (!strcmp(op, "sampler")) do_sampler();
    else if (!strcmp(op, "sample")) do_sample();
    else if (!strcmp(op, "compute_logprobs")) do_logprobs();
    else if (!strcmp(op, "save_state")) do_save();
    else if (!strcmp(op, "load_state")) do_load();
    else if (!strcmp(op, "encode")) do_encode();
    else if (!strcmp(op, "decode")) do_decode();
    else if (!strcmp(op, "render")) do_render();
    else {
      fprintf(stderr, "unknown line: %s\n", op);
      return 2;
    }
  }
  tinker_batch_free(batch), tinker_run_free(run), tinker_sampler_free(sampler), tinker_tokenizer_free(tokenizer);
  tinker_session_free(session), tinker_engine_free(engine);
  free(line);
  if (failed(tinker_debug_counts(&counts))) return 1;
  n = strpbrk(counts, "123456789") != NULL;
  if (n) fprintf(stderr, "left: %s\n", counts);
  tinker_free(counts);
  return n ? 1 : 0;
}
