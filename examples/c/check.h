/* What the examples share: stop with the library's own words when a call fails, and wait for a future. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "tinker.h"

#define CHECK(call) check((call), #call, __FILE__, __LINE__)

static inline void check(tinker_status status, const char *call, const char *file, int line) {
  if (status == TINKER_OK) return;
  fprintf(stderr, "%s:%d: %s\n  %s: %s\n", file, line, call, tinker_status_name(status), tinker_last_error());
  exit(1);
}

/* Waits for an operation that nothing else is wanted of. */
static inline void finish(tinker_future *future) {
  CHECK(tinker_future_wait(future, -1));
  CHECK(tinker_future_free(future));
}

/* The value of a metric of an operation that has ended. */
static inline double metric(tinker_future *future, const char *name) {
  const tinker_output *out = NULL;
  int64_t i;
  CHECK(tinker_future_output(future, &out));
  for (i = 0; i < out->metric_count; i++) {
    const char *a = out->metrics[i].name, *b = name;
    while (*a && *a == *b) a++, b++;
    if (*a == *b) return out->metrics[i].value;
  }
  fprintf(stderr, "there is no metric %s\n", name);
  exit(1);
}

/* Opens an engine with the defaults, and a run on the embedded model. */
static inline tinker_run *open_run(tinker_engine **engine, int rank) {
  tinker_session *session = NULL;
  tinker_future *future = NULL;
  tinker_run *run = NULL;
  tinker_lora lora = TINKER_LORA_INIT;
  lora.rank = rank;
  lora.has_seed = 1;
  lora.seed = 1;
  CHECK(tinker_engine_open(NULL, engine));
  CHECK(tinker_session_open(*engine, NULL, &session));
  CHECK(tinker_session_create_run(session, "tinker-local/tiny", &lora, NULL, &future));
  CHECK(tinker_future_wait(future, -1));
  CHECK(tinker_future_run(future, &run));
  CHECK(tinker_future_free(future));
  CHECK(tinker_session_free(session)); /* the run keeps it alive */
  return run;
}

#endif
