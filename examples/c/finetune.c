/* Teaches the embedded model four capitals, then asks for them, token by token.
 *
 *     prompt + completion -> tokens, targets (the next token), weights (0 in the prompt)
 *     forward_backward, optim_step: submitted together, waited for together
 *     tinker_run_sampler -> tinker_sample_stream */
#include <string.h>

#include "check.h"

static const char *const pairs[][2] = {
    {"capital of France:", " Paris\n"},
    {"capital of Italy:", " Rome\n"},
    {"capital of Norway:", " Oslo\n"},
    {"capital of Kenya:", " Nairobi\n"},
};
enum { PAIRS = sizeof pairs / sizeof pairs[0] };

/* Adds a prompt and its completion to the batch. */
static void add(tinker_batch *batch, tinker_tokenizer *tokenizer, const char *prompt, const char *completion) {
  char text[256];
  int32_t *ids = NULL, *head = NULL;
  int64_t count = 0, head_count = 0, i, n;
  float weights[256];
  snprintf(text, sizeof text, "%s%s", prompt, completion);
  CHECK(tinker_tokenizer_encode(tokenizer, text, (int64_t)strlen(text), 0, &ids, &count));
  CHECK(tinker_tokenizer_encode(tokenizer, prompt, (int64_t)strlen(prompt), 0, &head, &head_count));
  n = count - 1;
  for (i = 0; i < n; i++) weights[i] = i >= head_count - 1 ? 1.0f : 0.0f;
  CHECK(tinker_batch_datum(batch, ids, n));
  CHECK(tinker_batch_set(batch, "target_tokens", TINKER_INT32, ids + 1, &n, 1));
  CHECK(tinker_batch_set(batch, "weights", TINKER_FLOAT32, weights, &n, 1));
  tinker_free(ids);
  tinker_free(head);
}

int main(void) {
  tinker_engine *engine = NULL;
  tinker_tokenizer *tokenizer = NULL;
  tinker_batch *batch = NULL;
  tinker_run *run = open_run(&engine, 16);
  tinker_future *future = NULL;
  tinker_sampler *sampler = NULL;
  tinker_adam adam = TINKER_ADAM_INIT;
  tinker_sampling greedy = TINKER_SAMPLING_INIT;
  int32_t stop = 0;
  int step, i, right = 0;

  CHECK(tinker_tokenizer_open(engine, "tinker-local/tiny", &tokenizer));
  CHECK(tinker_batch_create(&batch));
  for (i = 0; i < PAIRS; i++) add(batch, tokenizer, pairs[i][0], pairs[i][1]);

  adam.learning_rate = 2e-3;
  for (step = 1; step <= 40; step++) {
    tinker_future *pass = NULL, *update = NULL;
    CHECK(tinker_forward_backward(run, batch, "cross_entropy", NULL, 0, &pass));
    CHECK(tinker_optim_step(run, &adam, &update));
    CHECK(tinker_future_wait(pass, -1));
    if (step % 10 == 0) printf("step %d: loss %.4f\n", step, metric(pass, "loss:sum"));
    CHECK(tinker_future_free(pass));
    finish(update);
  }

  CHECK(tinker_run_sampler(run, &future));
  CHECK(tinker_future_wait(future, -1));
  CHECK(tinker_future_sampler(future, &sampler));
  CHECK(tinker_future_free(future));
  CHECK(tinker_tokenizer_id(tokenizer, "\xC4\x8A", &stop)); /* a line's end, as the vocabulary spells it */
  greedy.temperature = 0;
  greedy.max_tokens = 16;
  greedy.stop_tokens = &stop;
  greedy.stop_token_count = 1;
  for (i = 0; i < PAIRS; i++) {
    tinker_stream *stream = NULL;
    tinker_decoder *decoder = NULL;
    tinker_token token;
    tinker_status status;
    int32_t *ids = NULL;
    int64_t count = 0, got = 0;
    char answer[256] = "", *text = NULL;
    CHECK(tinker_tokenizer_encode(tokenizer, pairs[i][0], (int64_t)strlen(pairs[i][0]), 0, &ids, &count));
    CHECK(tinker_sample_stream(sampler, ids, count, &greedy, &stream));
    CHECK(tinker_decoder_open(tokenizer, 0, &decoder));
    printf("%s", pairs[i][0]);
    while ((status = tinker_stream_next(stream, -1, &token, 1, &got)) == TINKER_OK) {
      CHECK(tinker_decoder_push(decoder, &token.id, 1, 0, &text));
      printf("%s", text);
      strncat(answer, text, sizeof answer - strlen(answer) - 1);
      tinker_free(text);
    }
    if (status != TINKER_END) CHECK(status);
    right += strcmp(answer, pairs[i][1]) == 0;
    CHECK(tinker_decoder_free(decoder));
    CHECK(tinker_stream_free(stream));
    tinker_free(ids);
  }

  printf("%d of %d are right\n", right, PAIRS);
  CHECK(tinker_sampler_free(sampler));
  CHECK(tinker_batch_free(batch));
  CHECK(tinker_run_free(run));
  CHECK(tinker_tokenizer_free(tokenizer));
  CHECK(tinker_engine_free(engine)); /* the last handle: the engine closes */
  return right == PAIRS ? 0 : 1;
}
