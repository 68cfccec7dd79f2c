// Package losses holds the bundled loss plugins: WebAssembly modules of the loss plugin ABI 1.0, built from src/ by build.sh.
//
// In the formulas t is the policy's log-probability of a token, w the input "weights" (1 on an answer's tokens, 0
// elsewhere; tokens of weight 0 may have any log-probability), and softplus(-x) = -log sigmoid(x). Every input is a
// tensor of loss_fn_inputs beside target_tokens; "per token" means the shape of target_tokens, others have shape [1]. Parameters
// are keys of loss_fn_config; a bool is 0 or 1, an enum the index of its value. All divide by counts of the whole batch.
//
// # dpo
//
// Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). Datums 2i and 2i+1 are the chosen and the
// rejected answer to one prompt.
//
//	reward = beta * sum w (t - ref)
//	h = reward_chosen - reward_rejected - margin
//	L = 1/pairs * sum (1-label_smoothing) softplus(-h) + label_smoothing softplus(h)
//
// Inputs: weights and ref_logprobs per token; margin, optional, of the chosen datum (an offset: arXiv 2402.10571). Parameters: beta
// 0.1; label_smoothing 0, at most 0.5. Metrics, means over pairs, named as in the Tinker cookbook: accuracy (reward_chosen >
// reward_rejected), margin (their difference), chosen_reward, rejected_reward.
//
// # bradley_terry
//
// Preferences by the sequences' own log-probabilities (Bradley & Terry 1952; as a loss: Ouyang et al. 2022, arXiv 2203.02155, eq. 1).
// Pairs as in dpo.
//
//	score = sum w t          (average: divided by sum w)
//	L = 1/pairs * sum softplus(-(beta (score_chosen - score_rejected) - margin))
//
// Input: weights per token. Parameters: beta 1, margin 0, average (bool) 0; average with a margin is SimPO (arXiv 2405.14734, eq. 6).
// Metrics: accuracy, margin (beta times the difference of scores), chosen_score, rejected_score.
//
// # kto
//
// Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8): single answers, good or bad.
//
//	s = sum w (t - ref)
//	z0 = max(0, mean of s over datums of label -1), constant; 0 when there are none
//	L = 1/n * sum desirable_weight (1 - sigmoid(beta (s - z0)))     over label 1
//	              undesirable_weight (1 - sigmoid(beta (z0 - s)))   over label 0;  n counts both
//
// Inputs: weights and ref_logprobs per token; label, int64: 1 desirable, 0 undesirable, -1 a prompt with another prompt's answer (the
// paper's estimate of the reference point; it gets no gradient). Parameters: beta 0.1, desirable_weight 1, undesirable_weight 1. Metrics: kl (z0),
// chosen_reward and rejected_reward (beta s, means by label), margin (their difference). Those of an absent label are left out.
//
// # grpo
//
// Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4).
//
//	A = (reward - mean of its group) / (standard deviation (n-1) of its group + 1e-4)
//	ratio = exp(t - q)
//	l = -min(ratio A, clamp(ratio, clip_low_threshold, clip_high_threshold) A) + beta (exp(ref-t) - (ref-t) - 1)
//	L = mean over groups of mean over the group's datums of mean over tokens of l
//
// Inputs: group, int64, the same number for all answers to one prompt; reward; per token and optional: weights (all tokens
// without it), logprobs (q, the sampler's; without it ratio is 1 and the gradient A), ref_logprobs (needed if beta is not 0).
// Parameters: clip_low_threshold 0.8 and clip_high_threshold 1.2, absolute ratios as in the built-in ppo; beta 0 (0.04 in the paper);
// scale_rewards (bool) 1, 0 leaves A undivided; length_norm (enum) sequence, group (sum over a group's tokens by
// their number: DAPO, arXiv 2503.14476, eq. 8) or none (sum over tokens: Dr. GRPO, arXiv 2503.20783). Metrics, means over datums: reward,
// reward_std (of the group), clip_frac (share of tokens where the clamp holds), kl (of the estimate above; left out without ref_logprobs).
//
// # gspo
//
// Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071, eq. 5 to 7). A as in grpo.
//
//	ratio = exp(mean over the answer's tokens of t - q)
//	L = mean over groups of mean over the group's datums of -min(ratio A, clamp(ratio, low, high) A)
//
// Inputs: group, reward, logprobs per token, weights optional, as in grpo. Parameters: clip_low_threshold 0.9997 and
// clip_high_threshold 1.0004 (the paper's section 5.1), scale_rewards 1. Metrics, means over datums: reward, ratio, clip_frac.
//
// # logprob_variance
//
// The unbiased variance of all log-probabilities of the batch, the Tinker documentation's example of a custom loss over several
// sequences (torch.var). No inputs, no parameters. Metrics: variance_loss (the loss), logprob (their mean).
//
//	L = sum (t - mean)^2 / (n - 1)
//
// # topk_distillation
//
// Targets are N x K candidates, the teacher's most probable tokens at each position (Hinton et al. 2015, arXiv 1503.02531; Agarwal
// et al. 2024, arXiv 2306.13649, section 2). p is the teacher's, q the policy's probability of a candidate.
//
//	forward  L = sum w p (log p - log q)      reverse  L = sum w q (log q - log p)
//
// A sum over candidates, positions and datums, as in the built-in cross_entropy, whose gradient with p as weights it has (forward).
// Inputs, N x K: teacher_logprobs; weights, optional, where a candidate of weight 0 is left out (rows of fewer than K). Parameters:
// divergence (enum) forward or reverse; renormalize (bool) 0, 1 divides p and q by their sums over the candidates. Reverse without it
// rewards moving probability to tokens outside the candidates. Metrics, means over datums: teacher_mass and student_mass, the candidates'
// summed probability at a position.
package losses

import (
	"embed"
	"strings"
)

//go:embed *.wasm
var modules embed.FS

// Bundled returns the bundled modules by name. The bytes are the caller's.
func Bundled() map[string][]byte {
	entries, err := modules.ReadDir(".")
	if err != nil {
		panic(err) // the files are part of the program
	}
	out := map[string][]byte{}
	for _, e := range entries {
		wasm, err := modules.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		out[strings.TrimSuffix(e.Name(), ".wasm")] = wasm
	}
	return out
}
