#include "client/generation_flags.h"

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace skein::client {
namespace {

template <typename T>
void AddNumber(CLI::App* command, const char* name, std::function<void(const T&)> set,
               const char* help, const char* type) {
  command->add_option_function<T>(name, std::move(set), help)
      ->type_name(type)
      ->group("Sampling")
      ->allow_extra_args(false);  // what follows a repeatable flag's value is the prompt
}

void AddBias(v1::Sampling* sampling, const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '=');
  int32_t id = 0;
  float value = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) ||
      !absl::SimpleAtof(parts[1], &value)) {
    throw CLI::ValidationError("--logit-bias", absl::StrCat("'", text, "' is not ID=VALUE"));
  }
  (*sampling->mutable_logit_bias())[id] = value;
}

void AddStop(v1::Stopping* stopping, const std::string& text) {
  std::string stop;
  if (!absl::CUnescape(text, &stop)) {
    throw CLI::ValidationError("--stop", absl::StrCat("'", text, "' has a bad escape"));
  }
  stopping->add_stop_strings(stop);
}

void SetMaxTime(v1::Stopping* stopping, double seconds) {
  if (!(seconds > 0 && seconds < 1e9))
    throw CLI::ValidationError("--max-time", "must be more than 0 seconds");
  const double whole = std::floor(seconds);
  stopping->mutable_max_time()->set_seconds(static_cast<int64_t>(whole));
  stopping->mutable_max_time()->set_nanos(static_cast<int32_t>((seconds - whole) * 1e9));
}

}  // namespace

void AddSamplingFlags(CLI::App* command, v1::GenerateRequest* request) {
  const auto s = [request] { return request->mutable_sampling(); };
  using F = float;
  AddNumber<F>(
      command, "-t,--temperature", [s](F v) { s()->set_temperature(v); }, "0 is greedy", "0..10");
  AddNumber<F>(
      command, "--top-p", [s](F v) { s()->set_top_p(v); }, "smallest set of tokens with this mass",
      "0..1");
  AddNumber<int32_t>(
      command, "--top-k", [s](int32_t v) { s()->set_top_k(v); }, "most probable tokens; 0: all",
      "N");
  AddNumber<F>(
      command, "--min-p", [s](F v) { s()->set_min_p(v); }, "least share of the best token's mass",
      "0..1");
  AddNumber<F>(
      command, "--presence-penalty", [s](F v) { s()->set_presence_penalty(v); },
      "taken once from tokens that occurred", "X");
  AddNumber<F>(
      command, "--frequency-penalty", [s](F v) { s()->set_frequency_penalty(v); },
      "taken for each occurrence", "X");
  AddNumber<F>(
      command, "--penalty-decay", [s](F v) { s()->set_penalty_decay(v); },
      "occurrences are multiplied by it at each token", "0..1");
  AddNumber<F>(
      command, "--repetition-penalty", [s](F v) { s()->set_repetition_penalty(v); },
      "divides the logits of tokens that occurred", "X");
  AddNumber<uint64_t>(
      command, "--seed", [s](uint64_t v) { s()->set_seed(v); },
      "the same seed, input and model give the same tokens", "N");
  AddNumber<std::vector<std::string>>(
      command, "--logit-bias",
      [s](const std::vector<std::string>& v) {
        for (auto& x : v) AddBias(s(), x);
      },
      "added to the logit of a token; may be repeated", "ID=VALUE");
  AddNumber<std::vector<int32_t>>(
      command, "--ban",
      [s](const std::vector<int32_t>& v) {
        for (int32_t x : v) s()->add_banned_token_ids(x);
      },
      "token ids that are never sampled", "ID");
  command
      ->add_flag_callback(
          "--top-p-before-temperature", [s] { s()->set_top_p_before_temperature(true); },
          "filter by the probabilities before the temperature")
      ->group("Sampling");
}

void AddStoppingFlags(CLI::App* command, v1::GenerateRequest* request) {
  const auto s = [request] { return request->mutable_stopping(); };
  const auto add = [command](CLI::Option* option, const char* type) {
    option->type_name(type)->group("Stopping")->allow_extra_args(false);
  };
  add(command->add_option_function<int32_t>(
          "-n,--max-tokens", [s](int32_t v) { s()->set_max_tokens(v); },
          "0 only takes the text in"),
      "N");
  add(command->add_option_function<int32_t>(
          "--min-tokens", [s](int32_t v) { s()->set_min_tokens(v); }, "nothing stops it before"),
      "N");
  add(command->add_option_function<double>(
          "--max-time", [s](double v) { SetMaxTime(s(), v); },
          "ends after this time with what is there"),
      "SECONDS");
  add(command->add_option_function<std::vector<std::string>>(
          "--stop",
          [s](const std::vector<std::string>& v) {
            for (auto& x : v) AddStop(s(), x);
          },
          "stop before this text; \\n and other C escapes are understood; may be repeated"),
      "TEXT");
  add(command->add_option_function<std::vector<int32_t>>(
          "--stop-id",
          [s](const std::vector<int32_t>& v) {
            for (int32_t x : v) s()->add_stop_token_ids(x);
          },
          "stop at this token; may be repeated"),
      "ID");
  command
      ->add_flag_callback(
          "--ignore-eos", [s] { s()->set_ignore_eos(true); }, "go on after end of document")
      ->group("Stopping");
}

CLI::Option* AddPromptStateFlag(CLI::App* command, std::function<void(const std::string&)> set) {
  return command
      ->add_option_function<std::string>(
          "--prompt-state", std::move(set),
          "begin with this prompt state of the server; `skein info` lists them")
      ->type_name("NAME");
}

CLI::Option* AddThinkingFlag(CLI::App* command, std::function<void(const std::string&)> set) {
  return command
      ->add_option_function<std::string>(
          "--thinking", std::move(set),
          "whether the model thinks before it answers: off (default), fast, on, short, medium or "
          "long; what it thinks is shown on a terminal and with --json")
      ->check(CLI::IsMember({"off", "fast", "on", "short", "medium", "long"}))
      ->type_name("HOW");
}

}  // namespace skein::client
