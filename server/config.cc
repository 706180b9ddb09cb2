#include "server/config.h"

#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/check.h"
#include "kernels/device.h"
#include "server/security_config.h"

namespace skein::server {
namespace {

using base::Range;
using base::YamlSchema;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kGiB = int64_t{1} << 30;

Range<int64_t> Ints(int64_t min, int64_t max) { return Range<int64_t>(min, max); }
Range<double> Reals(double min, double max) { return Range<double>(min, max); }

void AddListen(YamlSchema* s, ListenConfig* c) {
  s->Add("listen.address", &c->address, "address and port of gRPC; port 0 takes a free one");
  s->Add("listen.metrics", &c->metrics, "address and port of the Prometheus metrics; empty: none");
  s->AddBytes("listen.max_message", &c->max_message_bytes, Ints(4096, kGiB), "largest request");
  s->AddBytes("listen.max_metadata", &c->max_metadata_bytes, Ints(4096, 16 * kMiB),
              "largest request metadata");
  s->Add("listen.max_streams", &c->max_streams, Ints(1, 1 << 20),
         "requests at once on one connection");
  s->AddSeconds("listen.keepalive", &c->keepalive_seconds, Reals(1, 86400),
                "ping silent connections after this time");
  s->AddSeconds("listen.min_client_ping", &c->min_client_ping_seconds, Reals(0.1, 86400),
                "clients that ping more often are disconnected");
  s->AddSeconds("listen.max_connection_age", &c->max_connection_age_seconds, Reals(0, 1e8),
                "ask clients to reconnect after this time; 0: never");
  s->AddSeconds("listen.max_connection_grace", &c->max_connection_grace_seconds, Reals(0, 1e8),
                "time for running requests after that");
  s->AddSeconds("listen.max_connection_idle", &c->max_connection_idle_seconds, Reals(0, 1e8),
                "close connections without requests after this time; 0: never");
  s->AddSeconds("listen.handshake", &c->handshake_seconds, Reals(0.1, 3600),
                "time for TLS and the beginning of HTTP/2");
  s->Add("listen.max_connections", &c->max_connections, Ints(0, 1 << 20),
         "connections at once; 0: what the limit of open files leaves");
  s->AddBytes("listen.transport_memory", &c->transport_memory_bytes, Ints(0, int64_t{1} << 50),
              "memory for what is on its way to and from clients; 0: an eighth of the memory");
  s->Add("listen.control", &c->control,
         "address and port of Control alone; empty: with the other services");
  s->Add("listen.allow_insecure_public", &c->allow_insecure_public,
         "listen on other addresses than this machine's own without TLS or without tokens");
  s->Add("listen.allow_public_metrics", &c->allow_public_metrics,
         "listen.metrics may be another address than this machine's own, although it has neither");
  s->Add("listen.tls.certificate", &c->tls.certificate,
         "PEM file of the server's certificate and those above it; empty: no TLS");
  s->Add("listen.tls.key", &c->tls.key, "PEM file of its private key");
  s->Add("listen.tls.client_ca", &c->tls.client_ca,
         "PEM file of the authorities whose certificates of clients are believed");
  s->Add("listen.tls.require_client_certificate", &c->tls.require_client_certificate,
         "refuse connections without such a certificate");
}

void AddAuth(YamlSchema* s, AuthConfig* a) {
  s->AddRecords<ClientConfig>("auth.tokens", &a->tokens, AddClient,
                              "clients, as `skeind token create` prints them; none: everybody may "
                              "do everything");
  s->Add("auth.tokens_file", &a->tokens_file, "YAML file with a list `tokens` of more of them");
  s->Add("auth.open_health", &a->open_health, "health checks need no token");
}

void AddSource(YamlSchema* s, ModelSource* m) {
  s->Add("path", &m->path, "checkpoint, .safetensors or .pth");
  s->Add("name", &m->name, "name that clients see; empty: from the file's name");
  s->AddChoice("weights", &m->weights, {"auto", "bf16", "fp32", "int8", "int8a8"},
               "as in model.weights");
  s->Add("vocabulary", &m->vocabulary, "as in model.vocabulary");
}

void AddPrompt(YamlSchema* s, PromptConfig* p) {
  s->Add("name", &p->name, "as requests name it");
  s->Add("text", &p->text, "what they begin with");
  s->Add("system", &p->system, "the same as a system message of the chat template");
  s->Add("model", &p->model, "the model that it is for; empty: all");
}

void AddControl(YamlSchema* s, ServerConfig* c) {
  s->AddRecords<ModelSource>("models", &c->models, AddSource, "models served beside `model`");
  s->AddRecords<PromptConfig>("prompts", &c->prompts, AddPrompt,
                              "texts whose state is computed once, for requests to begin with");
  s->Add("control.model_folders", &c->control.model_folders,
         "folders that Control.LoadModel may read; empty: none");
  s->AddBytes("control.memory", &c->control.memory_bytes, Ints(0, int64_t{1} << 50),
              "what this process may use, for models and more; 0: the limit of its control group");
}

void AddModel(YamlSchema* s, ModelSource* m, CpuConfig* cpu) {
  s->Add("model.path", &m->path, "checkpoint, .safetensors or .pth");
  s->Add("model.name", &m->name, "name that clients see; empty: from the file's name");
  s->AddChoice("model.weights", &m->weights, {"auto", "bf16", "fp32", "int8", "int8a8"},
               "type of the weights in memory; auto: as stored (fp16 becomes fp32); int8: made at "
               "load; int8a8: "
               "and products of 8 bits");
  s->Add("model.vocabulary", &m->vocabulary, "World vocabulary file, for checkpoints without one");
  s->Add("cpu.threads", &cpu->threads, Ints(0, 1024),
         "threads of the model; 0: all of this process");
  s->Add(
      "cpu.tier", &cpu->tier,
      "force an instruction set (plain, avx2, avx512, avx512bf16, amx); empty: the best there is");
  s->Add("cpu.pin", &cpu->pin,
         "CPUs that these threads are bound to, one each: auto, or a list like 0-3,8; empty: none");
  s->Add("cpu.keep_packed", &cpu->keep_packed,
         "keep packed weights in a file beside the checkpoint, for the next start");
  s->Add("cpu.chunked_wkv", &cpu->chunked_wkv,
         "WKV of prompts by chunks on AMX: faster, but not the same bits however a prompt is cut");
}

void AddEngine(YamlSchema* s, EngineConfig* e) {
  s->Add("engine.slots", &e->slots, Ints(1, 4096), "requests that are computed at once");
  s->Add("engine.max_step_tokens", &e->max_step_tokens, Ints(1, 65536),
         "tokens of one step, all requests together");
  s->Add("engine.max_prefill_chunk", &e->max_prefill_chunk, Ints(1, 65536),
         "prompt tokens of one request in one step");
  s->AddSeconds("engine.target_inter_token", &e->target_inter_token_seconds, Reals(0.001, 60),
                "prompts are cut so that steps with answers in them keep to this, if they can");
  s->Add("engine.output_shards", &e->output_shards, Ints(1, 64), "threads that write answers");
  s->Add("engine.max_parked", &e->max_parked, Ints(0, 1 << 20),
         "requests that run but lent their slot; 0: twice the slots");
  s->AddSeconds("engine.stall", &e->stall_seconds, Reals(0.1, 86400),
                "a step longer than this turns health to NOT_SERVING");
}

void AddLimits(YamlSchema* s, LimitsConfig* l) {
  s->Add("limits.queued", &l->queued, Ints(1, 1000000), "requests that wait; more are refused");
  s->Add("limits.queued_tokens", &l->queued_tokens, Ints(1, int64_t{1} << 40),
         "prompt tokens that wait; more are refused");
  s->Add("limits.prompt_tokens", &l->prompt_tokens, Ints(1, int64_t{1} << 30),
         "tokens of one request's input");
  s->Add("limits.max_tokens", &l->max_tokens, Ints(1, 1 << 30), "tokens of one answer");
  s->Add("limits.stop_strings", &l->stop_strings, Ints(0, 1024), "stop strings of one request");
  s->Add("limits.stop_string_bytes", &l->stop_string_bytes, Ints(1, 65536), "of one stop string");
  s->Add("limits.stop_token_ids", &l->stop_token_ids, Ints(0, 65536), "stop ids of one request");
  s->Add("limits.logit_bias", &l->logit_bias, Ints(0, 65536),
         "entries of logit_bias and of banned_token_ids");
  s->Add("limits.top_logprobs", &l->top_logprobs, Ints(0, kernels::kMaxTopLogprobs),
         "alternatives reported at each token");
  s->Add("limits.num_sequences", &l->num_sequences, Ints(1, 1024),
         "sequences that one Generate request may sample");
  s->Add("limits.score_continuations", &l->score_continuations, Ints(1, 65536),
         "continuations of one Score request");
  s->AddBytes("limits.tokenize_bytes", &l->tokenize_bytes, Ints(1, kGiB),
              "of one Tokenize request");
  s->Add("limits.detokenize_ids", &l->detokenize_ids, Ints(1, 1 << 30),
         "of one Detokenize request");
  s->Add("limits.forks", &l->forks, Ints(1, 4096), "copies made by one Fork request");
  s->Add("limits.outbox_tokens", &l->outbox_tokens, Ints(1, 1 << 20),
         "tokens kept for a slow reader before its request is paused");
  s->AddSeconds("limits.outbox_age", &l->outbox_age_seconds, Reals(0.1, 86400),
                "a reader that is slow for longer loses its request");
}

void AddRequests(YamlSchema* s, RequestsConfig* r) {
  s->Add("requests.kept", &r->kept, Ints(1, 1000000),
         "ended requests of one tenant that a retry or Attach still finds");
  s->AddBytes("requests.kept_bytes", &r->kept_bytes, Ints(0, int64_t{1} << 40),
              "their tokens, all tenants together");
  s->AddSeconds("requests.kept_age", &r->kept_age_seconds, Reals(0, 1e8), "since they ended");
  s->AddBytes("requests.record", &r->record_bytes, Ints(4096, kGiB),
              "tokens kept of one running request");
}

void AddDefaults(YamlSchema* s, DefaultsConfig* d) {
  s->Add("defaults.temperature", &d->temperature, Reals(0, 10), "0 is greedy");
  s->Add("defaults.top_p", &d->top_p, Reals(1e-6, 1), "smallest set of tokens with this mass");
  s->Add("defaults.top_k", &d->top_k, Ints(0, 1 << 20), "most probable tokens kept; 0: off");
  s->Add("defaults.min_p", &d->min_p, Reals(0, 1), "least share of the best token's probability");
  s->Add("defaults.presence_penalty", &d->presence_penalty, Reals(-10, 10),
         "of tokens that occurred");
  s->Add("defaults.frequency_penalty", &d->frequency_penalty, Reals(-10, 10), "times occurrences");
  s->Add("defaults.penalty_decay", &d->penalty_decay, Reals(1e-6, 1),
         "occurrences are multiplied by it at each token");
  s->Add("defaults.repetition_penalty", &d->repetition_penalty, Reals(1e-3, 10),
         "divides logits of tokens that occurred; 1: off");
  s->Add("defaults.top_p_before_temperature", &d->top_p_before_temperature,
         "filters look at the probabilities before the temperature");
  s->Add("defaults.max_tokens", &d->max_tokens, Ints(1, 1 << 30), "tokens of an answer");
}

void AddConversations(YamlSchema* s, ConversationsConfig* c) {
  s->AddBytes(
      "conversations.budget", &c->budget_bytes, Ints(0, int64_t{1} << 50),
      "host memory for states, older ones are rebuilt from tokens when needed; 0: a quarter of "
      "the memory");
  s->AddBytes("conversations.token_budget", &c->token_budget_bytes, Ints(0, int64_t{1} << 50),
              "host memory for token ids, beyond it new turns are refused; 0: a sixteenth of the "
              "memory");
  s->Add("conversations.history", &c->history, Ints(1, 1024),
         "versions of a conversation that keep their state, the head's branch first");
  s->Add("conversations.max", &c->max, Ints(1, 1 << 30), "conversations kept");
  s->AddSeconds("conversations.ttl", &c->ttl_seconds, Reals(0, 1e9),
                "not used for this long, a conversation goes; 0: never");
  s->Add("conversations.max_waiting", &c->max_waiting, Ints(0, 65536),
         "requests that wait for one busy conversation");
  s->Add("conversations.tombstones", &c->tombstones, Ints(0, 1 << 30),
         "conversations that went, remembered for each tenant");
}

void AddRest(YamlSchema* s, ServerConfig* c) {
  s->AddSeconds("shutdown.drain", &c->drain_seconds, Reals(0, 86400),
                "time for running requests after SIGTERM");
  s->AddChoice("log.level", &c->log.level, {"debug", "info", "warning", "error"},
               "least level shown");
  s->AddChoice("log.format", &c->log.format, {"text", "json"}, "one line a record");
  s->Add("metrics.latency_buckets", &c->metrics.latency_buckets,
         "upper bounds of the latency histograms, seconds, ascending");
}

}  // namespace

void AddClient(YamlSchema* s, ClientConfig* c) {
  s->Add("name", &c->name, "shown in logs");
  s->Add("hash", &c->hash, "SHA-256 of the token");
  s->Add("certificate", &c->certificate, "name in the client's certificate, instead of a token");
  s->Add("tenant", &c->tenant, "whose conversations and quotas; empty: the same as the name");
  s->Add("scopes", &c->scopes, "generate, conversations, state_io, admin");
  constexpr int64_t kMost = int64_t{1} << 50;
  s->Add("quotas.requests", &c->quotas.requests, Ints(0, kMost), "running and waiting");
  s->Add("quotas.queued_tokens", &c->quotas.queued_tokens, Ints(0, kMost), "that wait");
  s->Add("quotas.conversations", &c->quotas.conversations, Ints(0, kMost), "kept");
  s->AddBytes("quotas.bytes", &c->quotas.bytes, Ints(0, kMost), "of the kept ones");
}

base::YamlSchema MakeSchema(ServerConfig* config) {
  YamlSchema schema;
  AddListen(&schema, &config->listen);
  AddAuth(&schema, &config->auth);
  AddModel(&schema, &config->model, &config->cpu);
  AddControl(&schema, config);
  AddEngine(&schema, &config->engine);
  AddLimits(&schema, &config->limits);
  AddRequests(&schema, &config->requests);
  AddDefaults(&schema, &config->defaults);
  AddConversations(&schema, &config->conversations);
  AddRest(&schema, config);
  return schema;
}

absl::Status ApplyEnvironment(base::YamlSchema* schema, const char* const* environment) {
  constexpr absl::string_view kPrefix = "SKEIND_";
  for (; *environment != nullptr; ++environment) {
    const absl::string_view variable = *environment;
    const size_t equals = variable.find('=');
    if (!absl::StartsWith(variable, kPrefix) || equals == absl::string_view::npos) continue;
    const absl::string_view name = variable.substr(kPrefix.size(), equals - kPrefix.size());
    const std::string key = absl::StrReplaceAll(absl::AsciiStrToLower(name), {{"__", "."}});
    if (absl::Status status = schema->Set(absl::StrCat(key, variable.substr(equals)));
        !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("environment variable ", variable.substr(0, equals), ": ",
                                       status.message()));
    }
  }
  return absl::OkStatus();
}

namespace {

absl::Status ValidatePrompts(const std::vector<PromptConfig>& prompts) {
  constexpr size_t kMostBytes = 128;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const PromptConfig& p = prompts[i];
    const auto bad = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("prompts[", i, "] ('", p.name, "') ", why));
    };
    const bool printable = std::none_of(p.name.begin(), p.name.end(), absl::ascii_iscntrl);
    if (p.name.empty() || p.name.size() > kMostBytes || !printable) {
      return bad("must have a name of at most 128 bytes without control characters");
    }
    if (p.text.empty() == p.system.empty()) return bad("must have either text or system");
    for (size_t j = 0; j < i; ++j) {
      const bool both = p.model.empty() || prompts[j].model.empty() || p.model == prompts[j].model;
      if (both && p.name == prompts[j].name)
        return bad(absl::StrCat("has the name of prompts[", j, "]"));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateModelNames(const ServerConfig& c) {
  std::set<std::string> names = {c.model.Name()};
  for (const ModelSource& model : c.models) {
    if (!names.insert(model.Name()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("models: two models have the name '", model.Name(), "'"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const ServerConfig& c) {
  if (c.defaults.max_tokens > c.limits.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("defaults.max_tokens (", c.defaults.max_tokens,
                                                   ") is more than limits.max_tokens (",
                                                   c.limits.max_tokens, ")"));
  }
  if (c.limits.prompt_tokens > c.limits.queued_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "limits.prompt_tokens (", c.limits.prompt_tokens, ") is more than limits.queued_tokens (",
        c.limits.queued_tokens, "), so the longest prompts could never be queued"));
  }
  if (c.engine.max_step_tokens < c.engine.slots) {
    return absl::InvalidArgumentError(absl::StrCat(
        "engine.max_step_tokens (", c.engine.max_step_tokens, ") is less than engine.slots (",
        c.engine.slots, "): each running request needs one token a step"));
  }
  SKEIN_RETURN_IF_ERROR(ValidateSecurity(c.listen, c.auth));
  SKEIN_RETURN_IF_ERROR(ValidatePrompts(c.prompts));
  SKEIN_RETURN_IF_ERROR(ValidateModelNames(c));
  double last = 0;
  for (double bucket : c.metrics.latency_buckets) {
    if (!(bucket > last)) {
      return absl::InvalidArgumentError(
          "metrics.latency_buckets must be positive and in ascending order");
    }
    last = bucket;
  }
  return absl::OkStatus();
}

absl::Status ValidateCpu(const CpuConfig& cpu) {
  if (cpu.tier.empty() && cpu.pin.empty()) return absl::OkStatus();
  std::string error;
  const auto device =
      kernels::NewCpuDevice({static_cast<int>(cpu.threads), cpu.tier, cpu.pin}, &error);
  if (device != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cpu: ", error));
}

int64_t ServerConfig::MemoryBytes() const {
  return control.memory_bytes > 0 ? control.memory_bytes : kernels::UsableMemoryBytes();
}

engine::EngineOptions ServerConfig::ToEngineOptions() const {
  engine::EngineOptions o;
  o.slots = static_cast<int32_t>(engine.slots);
  o.max_step_tokens = static_cast<int32_t>(engine.max_step_tokens);
  o.max_prefill_chunk = static_cast<int32_t>(engine.max_prefill_chunk);
  o.target_inter_token = absl::Seconds(engine.target_inter_token_seconds);
  o.max_queued = static_cast<int32_t>(limits.queued);
  o.max_queued_tokens = limits.queued_tokens;
  o.max_parked = static_cast<int32_t>(engine.max_parked);
  o.output_shards = static_cast<int32_t>(engine.output_shards);
  o.slow_reader_limit = absl::Seconds(limits.outbox_age_seconds);
  o.stall_limit = absl::Seconds(engine.stall_seconds);
  return o;
}

engine::ConversationStoreOptions ServerConfig::ToStoreOptions() const {
  engine::ConversationStoreOptions o;
  const auto or_share = [this](int64_t bytes, int64_t part) {
    return bytes > 0 ? bytes : MemoryBytes() / part;
  };
  o.budget_bytes = or_share(conversations.budget_bytes, 4);
  o.token_budget_bytes = or_share(conversations.token_budget_bytes, 16);
  o.history = static_cast<int32_t>(conversations.history);
  o.max_conversations = static_cast<int32_t>(conversations.max);
  if (conversations.ttl_seconds > 0) o.ttl = absl::Seconds(conversations.ttl_seconds);
  o.max_waiting = static_cast<int32_t>(conversations.max_waiting);
  o.tombstones = static_cast<int32_t>(conversations.tombstones);
  return o;
}

RequestLogOptions ServerConfig::ToRequestLogOptions() const {
  RequestLogOptions o;
  o.kept = requests.kept;
  o.kept_bytes = requests.kept_bytes;
  o.kept_age = absl::Seconds(requests.kept_age_seconds);
  return o;
}

RecordLimits ServerConfig::ToRecordLimits() const {
  return {requests.record_bytes, limits.outbox_tokens, absl::Seconds(limits.outbox_age_seconds)};
}

engine::SamplingOptions ServerConfig::DefaultSampling() const {
  engine::SamplingOptions o;
  o.temperature = static_cast<float>(defaults.temperature);
  o.top_p = static_cast<float>(defaults.top_p);
  o.top_k = static_cast<int32_t>(defaults.top_k);
  o.min_p = static_cast<float>(defaults.min_p);
  o.presence_penalty = static_cast<float>(defaults.presence_penalty);
  o.frequency_penalty = static_cast<float>(defaults.frequency_penalty);
  o.penalty_decay = static_cast<float>(defaults.penalty_decay);
  o.repetition_penalty = static_cast<float>(defaults.repetition_penalty);
  o.top_p_before_temperature = defaults.top_p_before_temperature;
  return o;
}

engine::StoppingOptions ServerConfig::DefaultStopping() const {
  engine::StoppingOptions o;
  o.max_tokens = static_cast<int32_t>(defaults.max_tokens);
  return o;
}

std::string ModelSource::Name() const {
  if (!name.empty()) return name;
  const size_t slash = path.rfind('/');
  std::string file = slash == std::string::npos ? path : path.substr(slash + 1);
  const size_t dot = file.rfind('.');
  return dot == std::string::npos || dot == 0 ? file : file.substr(0, dot);
}

}  // namespace skein::server
