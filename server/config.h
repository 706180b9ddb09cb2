#pragma once
// The daemon's configuration: one struct, declared as one table. The defaults here are the values
// of config.yaml (a test compares them). Order of precedence, last wins: config file, environment,
// --set, --model.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/base/strict_yaml.h"
#include "engine/engine.h"
#include "engine/quotas.h"
#include "engine/request.h"
#include "server/request_log_options.h"

namespace skein::server {

struct TlsConfig {
  std::string certificate;  // PEM file: the server's, then those between it and the root
  std::string key;          // PEM file
  std::string
      client_ca;  // PEM file: who may sign certificates of clients; empty: none are asked for
  bool require_client_certificate = false;

  bool enabled() const { return !certificate.empty(); }
};

struct ListenConfig {
  std::string address = "127.0.0.1:50051";
  std::string control;                     // of Control alone; empty: with the others
  std::string metrics = "127.0.0.1:9464";  // empty: none
  int64_t max_message_bytes = 4 << 20;
  int64_t max_metadata_bytes = 16 << 10;
  int64_t max_streams = 1024;  // of one connection
  double keepalive_seconds = 60;
  double min_client_ping_seconds = 10;
  int64_t max_connections = 0;  // 0: what the limit of open files leaves
  double handshake_seconds = 10;
  double max_connection_idle_seconds = 1800;  // 0: no limit
  double max_connection_age_seconds = 86400;  // 0: no limit
  double max_connection_grace_seconds = 3600;
  int64_t transport_memory_bytes = 0;  // 0: an eighth of the memory
  bool allow_insecure_public = false;
  bool allow_public_metrics = false;
  TlsConfig tls;
};

// A client and how it is recognised: by a token or by the name in its certificate.
struct ClientConfig {
  std::string name;
  std::string hash;         // SHA-256 of the token, in hexadecimal digits
  std::string certificate;  // common name, DNS name or URI
  std::string tenant;       // empty: the same as the name
  std::vector<std::string> scopes = {"generate", "conversations"};
  engine::Quotas quotas;  // of the tenant
};

struct AuthConfig {
  std::vector<ClientConfig> tokens;
  std::string tokens_file;  // a file with more of them
  bool open_health = true;  // health checks need no token

  // Whether callers must show who they are.
  bool enabled() const { return !tokens.empty() || !tokens_file.empty(); }
};

struct ModelSource {
  std::string path = "models/demo.safetensors";
  std::string name;              // empty: the file's name without folder and ending
  std::string weights = "auto";  // or "bf16", "fp32", "int8", "int8a8"
  std::string vocabulary;        // World-format file, where the checkpoint does not bring its own

  // `name`, or what the path says.
  std::string Name() const;
};

struct ControlConfig {
  std::vector<std::string> model_folders = {"models"};  // of LoadModel
  int64_t memory_bytes = 0;                             // for this process; 0: what there is
};

// A text that requests may begin with; its state is computed once for each model.
struct PromptConfig {
  std::string name;
  std::string text;    // as it is
  std::string system;  // or a system message, which the model's chat template renders
  std::string model;   // the name of the one that it is for; empty: all

  bool operator==(const PromptConfig&) const = default;
};

struct CpuConfig {
  int64_t threads = 0;
  std::string tier;
  std::string pin;           // as kernels::CpuOptions::pin
  bool keep_packed = false;  // in a file beside the checkpoint
  bool chunked_wkv = false;  // engine::ModelOptions::chunked_wkv
};

struct EngineConfig {
  int64_t slots = 64;
  int64_t max_step_tokens = 512;
  int64_t max_prefill_chunk = 256;
  double target_inter_token_seconds = 0.05;
  int64_t output_shards = 1;
  int64_t max_parked = 0;  // 0: twice the slots
  double stall_seconds = 10;
};

struct LimitsConfig {
  int64_t queued = 256;
  int64_t queued_tokens = 1 << 20;
  int64_t prompt_tokens = 65536;
  int64_t max_tokens = 32768;
  int64_t stop_strings = 16;
  int64_t stop_string_bytes = 256;
  int64_t stop_token_ids = 64;
  int64_t logit_bias = 1024;
  int64_t top_logprobs = 20;
  int64_t score_continuations = 256;
  int64_t tokenize_bytes = 1 << 20;
  int64_t detokenize_ids = 1 << 18;
  int64_t num_sequences = 16;
  int64_t forks = 64;
  int64_t outbox_tokens = 1024;
  double outbox_age_seconds = 30;
};

struct RequestsConfig {
  int64_t kept = 1024;
  int64_t kept_bytes = 64 << 20;
  double kept_age_seconds = 600;
  int64_t record_bytes = 1 << 20;
};

struct DefaultsConfig {
  double temperature = 1.0;
  double top_p = 0.5;
  int64_t top_k = 0;
  double min_p = 0;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double penalty_decay = 0.996;
  double repetition_penalty = 1;
  bool top_p_before_temperature = false;
  int64_t max_tokens = 256;
};

struct ConversationsConfig {
  int64_t budget_bytes = 0;        // 0: a quarter of MemoryBytes
  int64_t token_budget_bytes = 0;  // 0: a sixteenth
  int64_t history = 4;
  int64_t max = 100000;
  double ttl_seconds = 0;  // 0: never
  int64_t max_waiting = 16;
  int64_t tombstones = 10000;
};

struct LogConfig {
  std::string level = "info";
  std::string format = "text";
};

struct MetricsConfig {
  std::vector<double> latency_buckets = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                                         0.5,   1,     2,     5,    10,   20,   60};
};

struct ServerConfig {
  ListenConfig listen;
  AuthConfig auth;
  ModelSource model;                // the default
  std::vector<ModelSource> models;  // beside it
  std::vector<PromptConfig> prompts;
  ControlConfig control;
  CpuConfig cpu;
  EngineConfig engine;
  LimitsConfig limits;
  RequestsConfig requests;
  DefaultsConfig defaults;
  ConversationsConfig conversations;
  double drain_seconds = 30;
  LogConfig log;
  MetricsConfig metrics;

  // What this process may use: as told, else its control group's limit or the machine's memory.
  int64_t MemoryBytes() const;
  engine::EngineOptions ToEngineOptions() const;
  engine::ConversationStoreOptions ToStoreOptions() const;
  RequestLogOptions ToRequestLogOptions() const;
  RecordLimits ToRecordLimits() const;
  engine::SamplingOptions DefaultSampling() const;
  engine::StoppingOptions DefaultStopping() const;
};

// The table of every key. `config` must outlive it.
base::YamlSchema MakeSchema(ServerConfig* config);

// SKEIND_LIMITS__QUEUED=8 means limits.queued=8. `environment` is a null-terminated array like
// environ. A variable with the prefix that names no key is an error.
absl::Status ApplyEnvironment(base::YamlSchema* schema, const char* const* environment);

// The keys of one client in a list of them.
void AddClient(base::YamlSchema* schema, ClientConfig* client);

// What single ranges cannot say: how values fit together, and whether addresses, certificates and
// the file of tokens can be used.
absl::Status Validate(const ServerConfig& config);
// The tier and the CPUs, which only a device can tell, so one is made: as the start of a model
// does.
absl::Status ValidateCpu(const CpuConfig& cpu);

}  // namespace skein::server
