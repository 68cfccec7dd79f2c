/* Threads that call at random with handles at random, also those that others free meanwhile, and once while the engine is closed. Only crashes,
 * hangs and leaks are wrong here. The argument is a seed. */
#include <pthread.h>
#include <unistd.h>

#include "expect.h"

/* The number of a kind is in a handle's first byte, which no program but this one should know. */
enum { ENGINE = 1, SESSION = 4, RUN = 5, SAMPLER = 6, BATCH = 7, HELD = 9, STREAM = 10, FUTURE = 11, KINDS = 12, EACH = 6 };
enum { CHAOS_THREADS = 8, CHAOS_CALLS = 2000 };
static void *pool[KINDS][EACH];

static void drop_any(void *x) {
  if (tinker_future_free((tinker_future *)x) == TINKER_OK || tinker_run_free((tinker_run *)x) == TINKER_OK) return;
  if (tinker_session_free((tinker_session *)x) == TINKER_OK || tinker_sampler_free((tinker_sampler *)x) == TINKER_OK) return;
  if (tinker_batch_free((tinker_batch *)x) == TINKER_OK || tinker_held_free((tinker_held *)x) == TINKER_OK) return;
  if (tinker_stream_free((tinker_stream *)x) == TINKER_OK || tinker_engine_free((tinker_engine *)x) == TINKER_OK) return;
  tinker_module_free((tinker_module *)x);
}

/* Puts a handle into the pool, and frees the one that was there. */
static void keep(unsigned *seed, void *x) {
  if (x) drop_any(__atomic_exchange_n(&pool[(uintptr_t)x >> 56][rand_r(seed) % EACH], x, __ATOMIC_SEQ_CST));
}

/* A handle of the kind that is asked for; sometimes any. */
static void *any(unsigned *seed, unsigned kind) {
  int slot = (int)(rand_r(seed) % EACH);
  if (rand_r(seed) % 16 == 0) kind = rand_r(seed) % KINDS;
  return __atomic_load_n(&pool[kind][slot], __ATOMIC_SEQ_CST);
}

static void *chaos_thread(void *p) {
  unsigned seed = (unsigned)(uintptr_t)p;
  int i;
  for (i = 0; i < CHAOS_CALLS; i++) {
    void *out = NULL;
    float w[N] = {1, 1, 1, 1, 1, 1, 1, 1};
    const int64_t shape = N - 1;
    int64_t count = 0;
    int32_t state = 0;
    tinker_token token;
    tinker_sampling s = TINKER_SAMPLING_INIT;
    tinker_lora lora = TINKER_LORA_INIT;
    const tinker_output *output = NULL;
    const char *text = NULL;
    char *json = NULL;
    s.max_tokens = 1 + rand_r(&seed) % 6;
    lora.rank = 1;
    switch (rand_r(&seed) % 24) {
      case 0: tinker_session_open((tinker_engine *)any(&seed, ENGINE), NULL, (tinker_session **)&out); break;
      case 1: tinker_session_create_run((tinker_session *)any(&seed, SESSION), MODEL, &lora, NULL, (tinker_future **)&out); break;
      case 2: tinker_future_run((tinker_future *)any(&seed, FUTURE), (tinker_run **)&out); break;
      case 3: tinker_batch_create((tinker_batch **)&out); break;
      case 4: tinker_batch_datum((tinker_batch *)any(&seed, BATCH), tokens, N - 1); break;
      case 5: tinker_batch_set((tinker_batch *)any(&seed, BATCH), "target_tokens", TINKER_INT32, tokens, &shape, 1); break;
      case 6: tinker_forward_backward((tinker_run *)any(&seed, RUN), (tinker_batch *)any(&seed, BATCH), "cross_entropy", NULL, 0, (tinker_future **)&out); break;
      case 7: tinker_optim_step((tinker_run *)any(&seed, RUN), NULL, (tinker_future **)&out); break;
      case 8: tinker_hold((tinker_run *)any(&seed, RUN), (tinker_batch *)any(&seed, BATCH), (tinker_future **)&out); break;
      case 9: tinker_future_held((tinker_future *)any(&seed, FUTURE), (tinker_held **)&out); break;
      case 10: tinker_held_backward((tinker_held *)any(&seed, HELD), w, N - 1, (tinker_future **)&out); break;
      case 11: tinker_run_sampler((tinker_run *)any(&seed, RUN), (tinker_future **)&out); break;
      case 12: tinker_session_create_sampler((tinker_session *)any(&seed, SESSION), MODEL, (tinker_future **)&out); break;
      case 13: tinker_future_sampler((tinker_future *)any(&seed, FUTURE), (tinker_sampler **)&out); break;
      case 14: tinker_sample((tinker_sampler *)any(&seed, SAMPLER), tokens, N, &s, (tinker_future **)&out); break;
      case 15: tinker_sample_stream((tinker_sampler *)any(&seed, SAMPLER), tokens, N, &s, (tinker_stream **)&out); break;
      case 16: tinker_stream_next((tinker_stream *)any(&seed, STREAM), 2, &token, 1, &count); break;
      case 17: tinker_future_wait((tinker_future *)any(&seed, FUTURE), 3); break;
      case 18: tinker_future_poll((tinker_future *)any(&seed, FUTURE), &state); break;
      case 19: tinker_future_cancel((tinker_future *)any(&seed, FUTURE)); break;
      case 20: tinker_engine_info((tinker_engine *)any(&seed, ENGINE), &json); break;
      case 21: tinker_run_info((tinker_run *)any(&seed, RUN), &json); break;
      case 22:
        if (rand_r(&seed) % 8 == 0) tinker_run_close((tinker_run *)any(&seed, RUN)), tinker_session_close((tinker_session *)any(&seed, SESSION));
        else if (rand_r(&seed) % 4 == 0) drop_any(any(&seed, 0));
        break;
      default: tinker_future_error((tinker_future *)any(&seed, FUTURE), &text), tinker_future_output((tinker_future *)any(&seed, FUTURE), &output);
    }
    tinker_free(json);
    keep(&seed, out);
  }
  return NULL;
}

static void chaos(unsigned seed, int close) {
  pthread_t t[CHAOS_THREADS];
  tinker_engine *engine = NULL;
  tinker_session *session = NULL;
  tinker_batch *batch = NULL;
  int i;
  OK(tinker_engine_open(NULL, &engine));
  OK(tinker_session_open(engine, NULL, &session));
  for (i = 0; i < EACH; i++) { /* enough to begin with */
    OK(tinker_batch_create(&batch));
    add_datum(batch);
    pool[BATCH][i] = batch;
    pool[RUN][i] = open_run(session, i);
    OK(tinker_session_create_sampler(session, MODEL, (tinker_future **)&pool[FUTURE][i]));
  }
  pool[ENGINE][0] = engine;
  pool[SESSION][0] = session;
  for (i = 0; i < CHAOS_THREADS; i++)
    if (pthread_create(&t[i], NULL, chaos_thread, (void *)(uintptr_t)(7 * i + 1 + close + 1000 * seed))) exit(3);
  if (close) {
    usleep(30000);
    tinker_engine_close(engine); /* its handle may have been freed */
  }
  for (i = 0; i < CHAOS_THREADS; i++) pthread_join(t[i], NULL);
  for (i = 0; i < KINDS * EACH; i++) {
    drop_any(pool[i / EACH][i % EACH]);
    pool[i / EACH][i % EACH] = NULL;
  }
}

int main(int argc, char **argv) {
  unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
  chaos(seed, 0);
  chaos(seed, 1);
  failures += left();
  return failures ? 1 : 0;
}
