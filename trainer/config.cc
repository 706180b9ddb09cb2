#include "trainer/config.h"

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"

namespace skein::trainer {
namespace {

using base::Range;

void DescribeModel(ModelOptions* m, base::YamlSchema* s) {
  s->Add("model.layers", &m->layers, Range<int64_t>(1, 1000), "blocks");
  s->Add("model.width", &m->width, Range<int64_t>(16, 65536), "a multiple of model.head_size");
  s->Add("model.head_size", &m->head_size, Range<int64_t>(16, 256), "a multiple of 16");
  const Range<int64_t> rank(0, 65536);
  s->Add("model.rank_w", &m->rank_w, rank,
         "rank of the decay's low-rank branch; 0: from the width");
  s->Add("model.rank_a", &m->rank_a, rank, "of the in-context learning rate's");
  s->Add("model.rank_v", &m->rank_v, rank, "of the value residual's");
  s->Add("model.rank_g", &m->rank_g, rank, "of the gate's");
  s->Add("model.dropout", &m->dropout, Range<double>(0, 0.9),
         "on the embedding and each block's two outputs");
  s->Add("model.init_from", &m->init_from,
         "checkpoint to continue from (its sizes are used); empty: from scratch");
}

void DescribeData(DataConfig* d, base::YamlSchema* s) {
  s->AddChoice("data.kind", &d->kind, {"auto", "text", "jsonl", "binidx", "recall-demo"},
               "auto: by the name (.jsonl; .bin or .idx; else text)");
  s->Add("data.train", &d->train,
         "text file, folder of text files, JSON lines with text or messages, or binidx prefix");
  s->Add("data.validation", &d->validation, "same kinds; empty: the end of data.train");
  s->Add("data.validation_fraction", &d->validation_fraction, Range<double>(0, 0.9),
         "of data.train, when data.validation is empty");
  s->Add("data.tokenizer", &d->tokenizer,
         "auto (init_from's, else bytes), bytes, or a World-format vocabulary file");
  s->AddChoice("data.sampler", &d->sampler, {"auto", "permutation", "magic-prime"},
               "auto: magic-prime from 2^20 windows on");
  s->Add("data.user_weight", &d->user_weight, Range<double>(0, 100),
         "loss weight of users' and system messages");
  s->Add("data.assistant_weight", &d->assistant_weight, Range<double>(0, 100),
         "of the assistant's");
  s->Add("data.document_reset", &d->document_reset,
         "zero state and token shift where a new document starts");
}

void DescribeTrain(TrainConfig* t, base::YamlSchema* s) {
  s->Add("train.context", &t->context, Range<int64_t>(1, 1 << 20), "tokens of a training sequence");
  s->Add("train.batch", &t->batch, Range<int64_t>(1, 1 << 20),
         "sequences of a forward pass, of all processes together (mpirun): a multiple of their "
         "number");
  s->Add("train.accumulate", &t->accumulate, Range<int64_t>(1, 1 << 16),
         "forward passes of an optimizer step");
  s->Add("train.steps", &t->steps, Range<int64_t>(0, int64_t{1} << 40), "optimizer steps");
  s->Add("train.warmup", &t->warmup, Range<int64_t>(0, int64_t{1} << 40), "steps");
  s->Add("train.lr", &t->lr, Range<double>(1e-12, 10), "after warm-up");
  s->Add("train.lr_final", &t->lr_final, Range<double>(0, 10), "at the end of the cosine");
  s->Add("train.weight_decay", &t->weight_decay, Range<double>(0, 100), "of matrices");
  s->Add("train.beta1", &t->beta1, Range<double>(0, 0.99999), "");
  s->Add("train.beta2", &t->beta2, Range<double>(0, 0.9999999), "");
  s->Add("train.eps", &t->eps, Range<double>(1e-30, 1), "");
  s->Add("train.clip", &t->clip, Range<double>(0, 1e9), "global gradient norm; 0: off");
  s->Add("train.l2wrap", &t->l2wrap, Range<double>(0, 1), "pull on the largest logit");
  s->Add("train.seed", &t->seed, Range<int64_t>(0, int64_t{1} << 62),
         "of the initial weights, sampling and dropout");
  s->AddChoice(
      "train.compute", &t->compute, {"auto", "bf16", "fp32"},
      "type of matrix products' inputs; auto: bf16 where the processor has it and it is faster");
  s->Add("train.threads", &t->threads, Range<int64_t>(0, 1024),
         "of each process; 0: its share of all that may be used. Fastest where train.batch is a "
         "multiple: then each takes samples of its own through the whole model. The last bits of a "
         "result depend on it");
}

void DescribeOutputs(Config* c, base::YamlSchema* s) {
  s->Add("evaluate.every", &c->evaluate.every, Range<int64_t>(0, int64_t{1} << 40),
         "steps; 0: only at the end");
  s->Add("evaluate.max_windows", &c->evaluate.max_windows, Range<int64_t>(0, int64_t{1} << 40),
         "windows (of train.context) of validation data; 0: all; the last evaluation always takes "
         "all");
  s->Add("evaluate.samples", &c->evaluate.samples, Range<int64_t>(0, 64),
         "texts to write at each evaluation");
  s->Add("evaluate.sample_tokens", &c->evaluate.sample_tokens, Range<int64_t>(1, 4096), "of each");
  s->Add("evaluate.temperature", &c->evaluate.temperature, Range<double>(0, 10), "of the samples");
  s->Add("evaluate.prompt", &c->evaluate.prompt,
         "that the samples continue; empty: a new document");
  s->Add("save.every", &c->save.every, Range<int64_t>(0, int64_t{1} << 40),
         "steps between resumable states and last.safetensors; 0: only at the end");
  s->Add("save.keep_every", &c->save.keep_every, "keep step-N.safetensors each time");
  s->Add("save.best", &c->save.best, "keep best.safetensors by validation loss");
  s->Add("save.initial", &c->save.initial, "write initial.safetensors before the first step");
  s->Add("save.pth", &c->save.pth, "write last.pth at the end too (opens with torch.load)");
  s->AddChoice("save.dtype", &c->save.dtype, {"fp32", "bf16"}, "of checkpoints");
  s->Add("log.every", &c->log.every, Range<int64_t>(1, int64_t{1} << 40),
         "steps between log lines");
  s->Add("log.tensorboard", &c->log.tensorboard, "write TensorBoard event files");
}

bool ChangesTheRun(absl::string_view section) {
  return section == "model" || section == "data" || section == "train";
}

std::vector<std::string> RunLines(
    const std::string& printed) {  // "section.key: value" of the lines that count
  std::vector<std::string> lines;
  std::string section;
  for (absl::string_view line : absl::StrSplit(printed, '\n')) {
    if (line.empty() || line[0] == '#') continue;
    if (line[0] != ' ') {
      section = std::string(line.substr(0, line.find(':')));
      continue;
    }
    line.remove_prefix(line.find_first_not_of(' '));
    if (ChangesTheRun(section) && !absl::StartsWith(line, "threads:")) {
      lines.push_back(section + "." + std::string(line));
    }
  }
  return lines;
}

}  // namespace

void Describe(Config* config, base::YamlSchema* schema) {
  schema->Add("run.folder", &config->run.folder,
              "logs, checkpoints and the resumable state go here");
  schema->AddChoice(
      "run.resume", &config->run.resume, {"never", "auto", "always"},
      "never: the folder must be new; auto: go on where it stopped, if it was started; always");
  schema->Add("run.output", &config->run.output, "also write the final checkpoint here; empty: no");
  DescribeModel(&config->model, schema);
  DescribeData(&config->data, schema);
  DescribeTrain(&config->train, schema);
  DescribeOutputs(config, schema);
}

absl::Status Validate(const Config& c) {
  if (c.run.folder.empty()) return absl::InvalidArgumentError("run.folder is empty");
  if (c.model.head_size % 16 != 0)
    return absl::InvalidArgumentError("model.head_size must be a multiple of 16");
  if (c.model.width % c.model.head_size != 0) {
    return absl::InvalidArgumentError("model.width must be a multiple of model.head_size");
  }
  if (c.data.kind != "recall-demo" && c.data.train.empty()) {
    return absl::InvalidArgumentError("data.train names no data: --set data.train=FILE");
  }
  if (c.train.lr_final > c.train.lr)
    return absl::InvalidArgumentError("train.lr_final is above train.lr");
  if (c.train.steps > 0 && c.train.warmup >= c.train.steps) {
    return absl::InvalidArgumentError("train.warmup must be below train.steps");
  }
  return absl::OkStatus();
}

std::vector<std::string> IncompatibleChanges(const std::string& saved, const std::string& now) {
  const std::vector<std::string> before = RunLines(saved), after = RunLines(now);
  std::vector<std::string> changes;
  for (size_t i = 0; i < std::max(before.size(), after.size()); ++i) {
    const std::string a = i < before.size() ? before[i] : "(absent)";
    const std::string b = i < after.size() ? after[i] : "(absent)";
    if (a != b) changes.push_back("was " + a + ", is now " + b);
  }
  return changes;
}

}  // namespace skein::trainer
