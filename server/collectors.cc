#include "server/collectors.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "prometheus/metric_family.h"
#include "server/log.h"

namespace skein::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

class Families {
 public:
  // Starts a family; Value adds series to it.
  Families& Gauge(const char* name, const char* help) {
    return Start(name, help, MetricType::Gauge);
  }
  Families& Counter(const char* name, const char* help) {
    return Start(name, help, MetricType::Counter);
  }
  Families& Value(double value, std::vector<ClientMetric::Label> labels = {}) {
    ClientMetric metric;
    metric.label = std::move(labels);
    if (families_.back().type == MetricType::Gauge) metric.gauge.value = value;
    if (families_.back().type == MetricType::Counter) metric.counter.value = value;
    families_.back().metric.push_back(std::move(metric));
    return *this;
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  Families& Start(const char* name, const char* help, MetricType type) {
    MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = type;
    families_.push_back(std::move(family));
    return *this;
  }
  std::vector<MetricFamily> families_;
};

double Ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// Of all engines of one model name.
struct ModelGauges {
  engine::EngineGauges sum;
  int64_t state_bytes = 0;  // in device slots
  bool draining = true;     // all of them

  void Add(const engine::EngineGauges& g, int64_t bytes_of_a_slot) {
    sum.running += g.running;
    sum.waiting += g.waiting;
    sum.slots_used += g.slots_used;
    sum.slots += g.slots;
    sum.waiting_tokens += g.waiting_tokens;
    sum.oldest_waiting = std::max(sum.oldest_waiting, g.oldest_waiting);
    sum.since_heartbeat = std::max(sum.since_heartbeat, g.since_heartbeat);
    state_bytes += g.slots_used * bytes_of_a_slot;
    draining = draining && g.draining;
  }
};

using Models = std::map<std::string, ModelGauges>;

// A gauge with one value a model.
template <typename Get>
void PerModel(const Models& models, const char* name, const char* help, Families* f, Get get) {
  f->Gauge(name, help);
  for (const auto& [model, gauges] : models)
    f->Value(static_cast<double>(get(gauges)), {{"model", model}});
}

void AddModels(const Models& models, Families* f) {
  PerModel(models, "skein_requests_running", "Requests that hold a slot.", f,
           [](const ModelGauges& m) { return m.sum.running; });
  PerModel(models, "skein_requests_waiting", "Requests that wait for a slot.", f,
           [](const ModelGauges& m) { return m.sum.waiting; });
  PerModel(models, "skein_queue_tokens", "Prompt tokens of the requests that wait.", f,
           [](const ModelGauges& m) { return m.sum.waiting_tokens; });
  PerModel(models, "skein_queue_oldest_seconds", "Age of the request that waits longest.", f,
           [](const ModelGauges& m) { return absl::ToDoubleSeconds(m.sum.oldest_waiting); });
  PerModel(models, "skein_engine_heartbeat_age_seconds",
           "Time since the last step while there is work.", f,
           [](const ModelGauges& m) { return absl::ToDoubleSeconds(m.sum.since_heartbeat); });
  PerModel(models, "skein_draining", "1 while new requests are refused.", f,
           [](const ModelGauges& m) { return m.draining ? 1 : 0; });
  PerModel(models, "skein_slots", "Requests that can be computed at once.", f,
           [](const ModelGauges& m) { return m.sum.slots; });
}

void AddStore(const Models& models, const engine::ConversationStoreGauges& store, Families* f) {
  f->Gauge("skein_state_cache_usage_ratio",
           "Used share of a tier of states; device slots belong to a model.");
  for (const auto& [model, m] : models) {
    f->Value(Ratio(m.sum.slots_used, m.sum.slots), {{"model", model}, {"tier", "device"}});
  }
  f->Value(Ratio(store.snapshot_bytes, store.budget_bytes), {{"tier", "host"}});
  f->Gauge("skein_state_cache_bytes", "Bytes of states in a tier.");
  for (const auto& [model, m] : models) {
    f->Value(static_cast<double>(m.state_bytes), {{"model", model}, {"tier", "device"}});
  }
  f->Value(static_cast<double>(store.snapshot_bytes), {{"tier", "host"}});
  f->Gauge("skein_conversation_token_bytes", "Bytes of the kept token ids.")
      .Value(static_cast<double>(store.token_bytes));
  f->Gauge("skein_conversations", "Conversations kept.")
      .Value(static_cast<double>(store.conversations), {{"tier", "host"}});
  f->Gauge("skein_conversation_lines", "Requests that wait for a busy conversation.")
      .Value(static_cast<double>(store.waiting));
  f->Gauge("skein_conversation_tombstones", "Conversations that went and whose end is still known.")
      .Value(static_cast<double>(store.tombstones));
  f->Counter("skein_conversations_lost_total", "Conversations that went without being deleted.")
      .Value(static_cast<double>(store.expired), {{"reason", "expired"}});
  f->Counter("skein_conversations_deleted_total", "Conversations deleted by their clients.")
      .Value(static_cast<double>(store.deleted));
  f->Counter("skein_state_evictions_total", "States that left a tier to make room for others.")
      .Value(static_cast<double>(store.evictions), {{"from", "host"}, {"to", "none"}});
}

struct ProcessTimes {
  double cpu_seconds = 0, start_seconds = 0;
  int64_t virtual_bytes = 0, resident_bytes = 0, threads = 0;
};

double BootTime() {
  std::FILE* file = std::fopen("/proc/stat", "re");
  if (file == nullptr) return 0;
  char line[256];
  long long boot = 0;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::sscanf(line, "btime %lld", &boot) == 1) break;
  }
  std::fclose(file);
  return static_cast<double>(boot);
}

// /proc/self/stat, proc(5). Fields are counted from the end of the command name, which may hold
// anything.
bool ReadProcess(ProcessTimes* out) {
  std::FILE* file = std::fopen("/proc/self/stat", "re");
  if (file == nullptr) return false;
  char text[2048];
  const size_t n = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  text[n] = 0;
  const char* rest = std::strrchr(text, ')');
  if (rest == nullptr) return false;
  unsigned long long user = 0, system = 0, start = 0, virtual_bytes = 0;
  long long threads = 0, resident_pages = 0;
  if (std::sscanf(
          rest + 1,
          " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %lld %*d %llu "
          "%llu %lld",
          &user, &system, &threads, &start, &virtual_bytes, &resident_pages) != 6) {
    return false;
  }
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  out->cpu_seconds = static_cast<double>(user + system) / ticks;
  static const double boot = BootTime();
  out->start_seconds = boot + static_cast<double>(start) / ticks;
  out->virtual_bytes = static_cast<int64_t>(virtual_bytes);
  out->resident_bytes = resident_pages * sysconf(_SC_PAGESIZE);
  out->threads = threads;
  return true;
}

int64_t OpenFiles() {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  int64_t n = -3;  // ".", ".." and the folder itself
  while (readdir(folder) != nullptr) ++n;
  closedir(folder);
  return n;
}

}  // namespace

void EngineGaugeCollector::Attach(const void* key, Source source) {
  absl::MutexLock lock(&mu_);
  sources_[key] = std::move(source);
}

void EngineGaugeCollector::Detach(const void* key) {
  absl::MutexLock lock(&mu_);
  sources_.erase(key);
}

std::vector<MetricFamily> EngineGaugeCollector::Collect() const {
  absl::MutexLock lock(&mu_);
  if (sources_.empty()) return {};
  Models models;
  engine::ConversationStoreGauges store;
  for (const auto& [key, source] : sources_) {
    const engine::EngineGauges gauges = source.engine->gauges();
    models[source.model].Add(gauges, source.state_bytes);
    store = gauges.store;
  }
  Families f;
  AddModels(models, &f);
  AddStore(models, store, &f);
  return f.Take();
}

std::vector<MetricFamily> ProcessMetricsCollector::Collect() const {
  ProcessTimes p;
  if (!ReadProcess(&p)) return {};
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  Families f;
  f.Counter("process_cpu_seconds_total", "User and system CPU time.").Value(p.cpu_seconds);
  f.Gauge("process_start_time_seconds", "Start time since the epoch.").Value(p.start_seconds);
  f.Gauge("process_resident_memory_bytes", "Resident memory.")
      .Value(static_cast<double>(p.resident_bytes));
  f.Gauge("process_virtual_memory_bytes", "Virtual memory.")
      .Value(static_cast<double>(p.virtual_bytes));
  f.Gauge("process_threads", "Threads.").Value(static_cast<double>(p.threads));
  f.Counter("skein_log_lines_lost_total", "Log lines that could not be written.")
      .Value(static_cast<double>(LostLogLines()));
  f.Gauge("process_open_fds", "Open file descriptors.").Value(static_cast<double>(OpenFiles()));
  f.Gauge("process_max_fds", "Limit of open file descriptors.")
      .Value(static_cast<double>(files.rlim_cur));
  return f.Take();
}

}  // namespace skein::server
