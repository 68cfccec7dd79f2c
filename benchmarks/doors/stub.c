/* Functions of tinker.h that do nothing: what a call through Python then takes is Python's own. */
#include <stddef.h>

#include "tinker.h"

enum { TOKENS = 1 << 20 };
static int64_t offsets[4097], columns[4097];
static float logprobs[TOKENS];
static int32_t tokens[TOKENS], reasons[1] = {TINKER_LENGTH};
static tinker_pair metrics[1] = {{"loss:sum", 1.0}};
static tinker_output output = {sizeof output, 0, 0, offsets, columns, logprobs, 1, metrics};
static tinker_samples samples = {sizeof samples, 0, 1, offsets, tokens, logprobs, logprobs, reasons, 0, NULL, NULL, NULL, NULL};

/* The next outputs have so many datums of so many tokens. */
void stub_shape(int64_t datums, int64_t each) {
  for (int64_t i = 0; i <= datums; i++) offsets[i] = i * each;
  output.count = datums;
}

#define HANDLE(out) (*(out) = (void *)1, TINKER_OK)
tinker_status tinker_batch_create(tinker_batch **b) { return HANDLE(b); }
tinker_status tinker_batch_add(tinker_batch *b, const tinker_datums *d) { return (void)b, (void)d, TINKER_OK; }
tinker_status tinker_batch_free(tinker_batch *b) { return (void)b, TINKER_OK; }
tinker_status tinker_forward_backward(tinker_run *r, tinker_batch *b, const char *l, const tinker_pair *c, int64_t n, tinker_future **f) {
  return (void)r, (void)b, (void)l, (void)c, (void)n, HANDLE(f);
}
tinker_status tinker_optim_step(tinker_run *r, const tinker_adam *a, tinker_future **f) { return (void)r, (void)a, HANDLE(f); }
tinker_status tinker_sample(tinker_sampler *s, const int32_t *p, int64_t n, const tinker_sampling *o, tinker_future **f) {
  return (void)s, (void)p, (void)n, (void)o, HANDLE(f);
}
tinker_status tinker_future_wait(tinker_future *f, int64_t ms) { return (void)f, (void)ms, TINKER_OK; }
tinker_status tinker_future_free(tinker_future *f) { return (void)f, TINKER_OK; }
tinker_status tinker_future_output(tinker_future *f, const tinker_output **o) { return (void)f, *o = &output, TINKER_OK; }
tinker_status tinker_future_samples(tinker_future *f, const tinker_samples **s) { return (void)f, *s = &samples, TINKER_OK; }
