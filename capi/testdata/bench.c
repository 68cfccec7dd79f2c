/* What a call through the C interface costs: "NAME NANOSECONDS" a line, the least of several rounds. bench_test.go does the same through the Go
 * API. A pass on a closed run is checked and copied as any other and refused at the end, so that no device work is in the figure. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tinker.h"

enum { TOKENS = 1024, DATUMS = 16, ROUNDS = 9 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define OK(call) \
  do { \
    if ((call) != TINKER_OK) { \
      fprintf(stderr, "%s: %s\n", #call, tinker_last_error()); \
      exit(1); \
    } \
  } while (0)

#define MEASURE(name, times, body) \
  do { \
    double best = 1e18; \
    int round, i; \
    for (round = 0; round < ROUNDS; round++) { \
      double begin = now(), took; \
      for (i = 0; i < (times); i++) body; \
      took = (now() - begin) / (times); \
      if (took < best) best = took; \
    } \
    printf("%s %.1f\n", name, best); \
  } while (0)

int main(void) {
  tinker_engine *engine = NULL;
  tinker_session *session = NULL;
  tinker_run *run = NULL, *closed = NULL;
  tinker_batch *small = NULL, *big = NULL, *b = NULL;
  tinker_future *f = NULL, *done = NULL;
  tinker_lora lora = TINKER_LORA_INIT;
  tinker_datums d = TINKER_DATUMS_INIT;
  tinker_tensor t[2] = {TINKER_TENSOR_INIT, TINKER_TENSOR_INIT};
  static int32_t tokens[DATUMS * TOKENS];
  static int64_t offsets[DATUMS + 1];
  static float weights[DATUMS * TOKENS];
  static char copy[DATUMS * TOKENS * 12];
  int32_t state = 0;
  int k;
  for (k = 0; k < DATUMS * TOKENS; k++) tokens[k] = k % 250, weights[k] = 1;
  for (k = 0; k <= DATUMS; k++) offsets[k] = (int64_t)k * TOKENS;
  d.tokens = tokens, d.token_offsets = offsets, d.tensors = t, d.tensor_count = 2;
  t[0].name = "target_tokens", t[0].dtype = TINKER_INT32, t[0].values = tokens;
  t[1].name = "weights", t[1].dtype = TINKER_FLOAT32, t[1].values = weights;
  OK(tinker_engine_open(NULL, &engine));
  OK(tinker_session_open(engine, NULL, &session));
  lora.rank = 1;
  for (k = 0; k < 2; k++) {
    OK(tinker_session_create_run(session, "tinker-local/tiny", &lora, NULL, &f));
    OK(tinker_future_wait(f, -1));
    OK(tinker_future_run(f, k ? &closed : &run));
    OK(tinker_future_free(f));
  }
  OK(tinker_run_close(closed));
  OK(tinker_batch_create(&small));
  d.count = 1, t[0].count = t[1].count = 8, offsets[1] = 8;
  OK(tinker_batch_add(small, &d));
  d.count = DATUMS, t[0].count = t[1].count = DATUMS * TOKENS, offsets[1] = TOKENS;
  OK(tinker_batch_create(&big));
  OK(tinker_batch_add(big, &d));
  OK(tinker_optim_step(run, NULL, &done));
  OK(tinker_future_wait(done, -1));

  MEASURE("poll", 20000, OK(tinker_future_poll(done, &state)));
  MEASURE("wait", 20000, OK(tinker_future_wait(done, -1)));
  MEASURE("handle", 20000, {
    OK(tinker_batch_create(&b));
    OK(tinker_batch_free(b));
  });
  MEASURE("pass-8", 5000, { if (tinker_forward_backward(closed, small, "cross_entropy", NULL, 0, &f) != TINKER_ERR_CLOSED) exit(1); });
  MEASURE("pass-16384", 50, { if (tinker_forward_backward(closed, big, "cross_entropy", NULL, 0, &f) != TINKER_ERR_CLOSED) exit(1); });
  MEASURE("step", 200, {
    OK(tinker_optim_step(run, NULL, &f));
    OK(tinker_future_wait(f, -1));
    OK(tinker_future_free(f));
  });
  MEASURE("data-16384", 200, {
    OK(tinker_batch_create(&b));
    OK(tinker_batch_add(b, &d));
    OK(tinker_batch_free(b));
  });
  MEASURE("memcpy-16384", 200, {
    memcpy(copy, tokens, sizeof tokens);
    memcpy(copy + sizeof tokens, tokens, sizeof tokens);
    memcpy(copy + 2 * sizeof tokens, weights, sizeof weights);
    __asm__ volatile("" : : "r"(copy) : "memory");
  });
  OK(tinker_engine_close(engine));
  return 0;
}
