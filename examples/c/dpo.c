/* Direct preference optimisation (Rafailov et al. 2023, equation 7) with a loss that this program computes itself.
 *
 * For each pair of a chosen and a rejected completion, with the summed log-probabilities of the policy and of the reference model,
 *
 *     L = -log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))
 *
 * tinker_hold runs the forward and hands the log-probabilities out; w = -dL/dlogprob goes back in with tinker_held_backward. One
 * forward and one backward, as with a built-in loss. */
#include <math.h>
#include <string.h>

#include "check.h"

static const char *const prompt = "the best colour is";
static const char *const answers[][2] = {{" blue", " pink"}, {" green", " beige"}}; /* chosen, rejected */
enum { PAIRS = sizeof answers / sizeof answers[0], SEQUENCES = 2 * PAIRS };

/* Sums a sequence's log-probabilities behind the prompt. */
static double sum(const tinker_output *out, int sequence, int64_t skip) {
  double s = 0;
  int64_t i;
  for (i = out->offsets[sequence] + skip; i < out->offsets[sequence + 1]; i++) s += out->logprobs[i];
  return s;
}

int main(void) {
  const double beta = 0.1;
  tinker_engine *engine = NULL;
  tinker_tokenizer *tokenizer = NULL;
  tinker_batch *batch = NULL;
  tinker_run *run = open_run(&engine, 8);
  tinker_adam adam = TINKER_ADAM_INIT;
  double reference[SEQUENCES], first = 0, last = 0;
  int64_t skip = (int64_t)strlen(prompt) - 1; /* the embedded model's tokens are bytes */
  int step, i;

  CHECK(tinker_tokenizer_open(engine, "tinker-local/tiny", &tokenizer));
  CHECK(tinker_batch_create(&batch));
  for (i = 0; i < SEQUENCES; i++) {
    char text[128];
    int32_t *ids = NULL;
    int64_t count = 0, n;
    snprintf(text, sizeof text, "%s%s", prompt, answers[i / 2][i % 2]);
    CHECK(tinker_tokenizer_encode(tokenizer, text, (int64_t)strlen(text), 0, &ids, &count));
    n = count - 1;
    CHECK(tinker_batch_datum(batch, ids, n));
    CHECK(tinker_batch_set(batch, "target_tokens", TINKER_INT32, ids + 1, &n, 1));
    tinker_free(ids);
  }

  adam.learning_rate = 1e-3;
  for (step = 0; step < 20; step++) {
    tinker_future *forward = NULL, *backward = NULL, *update = NULL;
    tinker_held *held = NULL;
    const tinker_output *out = NULL;
    float *weights;
    double loss = 0;
    int64_t n, j;
    CHECK(tinker_hold(run, batch, &forward));
    CHECK(tinker_future_wait(forward, -1));
    CHECK(tinker_future_output(forward, &out)); /* valid until forward is freed */
    CHECK(tinker_future_held(forward, &held));
    n = out->offsets[out->count];
    weights = (float *)calloc((size_t)n, sizeof *weights);
    if (!weights) return 1;
    if (step == 0) /* a fresh adapter changes nothing: this is the reference model */
      for (i = 0; i < SEQUENCES; i++) reference[i] = sum(out, i, skip);
    for (i = 0; i < PAIRS; i++) {
      int chosen = 2 * i, rejected = 2 * i + 1;
      double margin = beta * ((sum(out, chosen, skip) - reference[chosen]) - (sum(out, rejected, skip) - reference[rejected]));
      float w = (float)(beta / (1 + exp(margin))); /* -dL/dlogprob of the chosen, +dL/dlogprob of the rejected */
      loss += log1p(exp(-margin));
      for (j = out->offsets[chosen] + skip; j < out->offsets[chosen + 1]; j++) weights[j] = w;
      for (j = out->offsets[rejected] + skip; j < out->offsets[rejected + 1]; j++) weights[j] = -w;
    }
    CHECK(tinker_held_backward(held, weights, n, &backward));
    CHECK(tinker_optim_step(run, &adam, &update));
    free(weights); /* it was copied */
    CHECK(tinker_held_free(held));
    CHECK(tinker_future_free(forward));
    finish(backward);
    finish(update);
    if (step == 0) first = loss;
    last = loss;
    if (step % 5 == 0 || step == 19) printf("step %d: loss %.4f\n", step, loss);
  }

  CHECK(tinker_batch_free(batch));
  CHECK(tinker_tokenizer_free(tokenizer));
  CHECK(tinker_run_free(run));
  CHECK(tinker_engine_free(engine));
  /* Before the first step policy and reference agree, and each pair's loss is log 2. */
  if (fabs(first - PAIRS * log(2)) > 1e-6 || last > first / 2) {
    fprintf(stderr, "the loss went from %f to %f\n", first, last);
    return 1;
  }
  return 0;
}
