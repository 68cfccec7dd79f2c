/* What the programs that do everything wrong share: expectations, a run, a datum. */
#ifndef EXPECT_H
#define EXPECT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tinker.h"

static int failures;

static inline void fail(const char *file, int line, const char *what, tinker_status got, tinker_status want) {
  fprintf(stderr, "%s:%d: %s gives %s (%s), wanted %s\n", file, line, what, tinker_status_name(got), tinker_last_error(), tinker_status_name(want));
  __atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST);
}

/* The call gives this status, and a message if that is a failure. */
#define WANT(status, call) \
  do { \
    tinker_status want_ = (status), got_ = (call); \
    if (got_ != want_) fail(__FILE__, __LINE__, #call, got_, want_); \
    else if (want_ > 0 && want_ != TINKER_ERR_FORKED && !*tinker_last_error()) fail(__FILE__, __LINE__, #call " without a message", got_, want_); \
  } while (0)
#define OK(call) WANT(TINKER_OK, call)
#define BAD(call) WANT(TINKER_ERR_BAD_REQUEST, call)
#define TRUE(condition) \
  do { \
    if (!(condition)) fail(__FILE__, __LINE__, #condition, 0, 0); \
  } while (0)

#define MODEL "tinker-local/tiny"
static const int32_t tokens[] = {104, 101, 108, 108, 111, 32, 119, 111};
enum { N = 8 };

static inline tinker_run *open_run(tinker_session *session, int seed) {
  tinker_future *f = NULL;
  tinker_run *run = NULL;
  tinker_lora lora = TINKER_LORA_INIT;
  lora.rank = 2;
  lora.has_seed = 1;
  lora.seed = seed;
  OK(tinker_session_create_run(session, MODEL, &lora, "{\"who\": \"abuse\"}", &f));
  OK(tinker_future_wait(f, -1));
  OK(tinker_future_run(f, &run));
  OK(tinker_future_free(f));
  return run;
}

static inline void add_datum(tinker_batch *batch) {
  const int64_t shape = N - 1;
  OK(tinker_batch_datum(batch, tokens, N - 1));
  OK(tinker_batch_set(batch, "target_tokens", TINKER_INT32, tokens + 1, &shape, 1));
}

/* 0 if nothing is alive, with a message otherwise. */
static inline int left(void) {
  char *json = NULL;
  int n;
  OK(tinker_debug_counts(&json));
  n = json && strpbrk(json, "123456789") != NULL;
  if (n) fprintf(stderr, "something is left: %s\n", json);
  tinker_free(json);
  return n;
}

#endif
