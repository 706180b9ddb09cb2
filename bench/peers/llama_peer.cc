// llama.cpp's side of the table of peers (run.py), compiled by setup.sh against the llama.h of its
// own build: the same prompt, the same rows, the same timing as skein_peer.cc.
//
//   llama_peer MODEL.gguf JSON THREADS ROWS PREFILL SECONDS LOGITS PROMPT    (ROWS, PROMPT: 1,2,3)

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "llama_peer: %s\n", message.c_str());
  std::exit(1);
}

std::vector<int> Numbers(const std::string& text) {
  std::vector<int> numbers;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) numbers.push_back(std::stoi(part));
  return numbers;
}

// As bench/ceilings.h: a warm-up, then at least five.
template <typename Body>
double MedianSeconds(double budget, const Body& body) {
  body();
  std::vector<double> times;
  const double start = Now();
  while (times.size() < 5 || Now() - start < budget) {
    const double t = Now();
    body();
    times.push_back(Now() - t);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

class Peer {
 public:
  Peer(const char* path, int threads, int rows, int tokens)
      : batch_(llama_batch_init(tokens, 0, 1)) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
    model_ = llama_model_load_from_file(path, llama_model_default_params());
    if (model_ == nullptr) Fail(std::string(path) + " is not loaded");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1 << 20;  // of all sequences together; a recurrent model keeps none of it
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(tokens);
    params.n_seq_max = static_cast<uint32_t>(rows);
    params.n_threads = params.n_threads_batch = threads;
    params.no_perf = true;
    context_ = llama_init_from_model(model_, params);
    if (context_ == nullptr) Fail("no context");
    V_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
  }
  ~Peer() {
    llama_batch_free(batch_);
    llama_free(context_);
    llama_model_free(model_);
  }

  int V() const { return V_; }
  // Forgets all sequences. The state of a new one is cleared when it begins; to clear those of all
  // rows here (`true`) would be counted to each prompt.
  void Clear() { llama_memory_clear(llama_get_memory(context_), false); }
  void Begin() { batch_.n_tokens = 0; }
  void Add(int token, int position, int row, bool logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = row;
    batch_.logits[i] = logits;
  }
  const float* Step() {
    if (llama_decode(context_, batch_) != 0) Fail("llama_decode failed");
    llama_synchronize(context_);
    return llama_get_logits(context_);
  }

 private:
  llama_model* model_ = nullptr;
  llama_context* context_ = nullptr;
  llama_batch batch_;
  int V_ = 0;
};

int Token(long i, int V) { return static_cast<int>(1 + i * 7 % (V - 1)); }

double Prefill(Peer& peer, int tokens, double seconds) {
  return tokens / MedianSeconds(seconds, [&] {
           peer.Clear();
           peer.Begin();
           for (int i = 0; i < tokens; ++i) peer.Add(Token(i, peer.V()), i, 0, i + 1 == tokens);
           peer.Step();
         });
}

double Decode(Peer& peer, int rows, double seconds) {
  peer.Clear();
  long drawn = 0;
  int position = 0;
  return rows / MedianSeconds(seconds, [&] {
           peer.Begin();
           for (int row = 0; row < rows; ++row)
             peer.Add(Token(drawn++, peer.V()), position, row, true);
           ++position;
           peer.Step();
         });
}

void WriteLogits(Peer& peer, const std::vector<int>& prompt, const char* path) {
  peer.Clear();
  peer.Begin();
  for (size_t i = 0; i < prompt.size(); ++i) peer.Add(prompt[i], static_cast<int>(i), 0, true);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(peer.Step()),
             static_cast<std::streamsize>(sizeof(float) * prompt.size() * peer.V()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9)
    Fail("usage: llama_peer MODEL.gguf JSON THREADS ROWS PREFILL SECONDS LOGITS PROMPT");
  const std::vector<int> rows = Numbers(argv[4]), prompt = Numbers(argv[8]);
  const int prefill = std::atoi(argv[5]), most = *std::max_element(rows.begin(), rows.end());
  const double seconds = std::atof(argv[6]);
  Peer peer(argv[1], std::atoi(argv[3]), most,
            std::max({prefill, most, static_cast<int>(prompt.size())}));
  WriteLogits(peer, prompt, argv[7]);
  std::ofstream json(argv[2]);
  json << "{\"system\": \"" << llama_print_system_info()
       << "\", \"cells\": {\"prefill\": {\"tokens_per_second\": " << Prefill(peer, prefill, seconds)
       << "}";
  for (const int n : rows)
    json << ", \"B" << n << "\": {\"tokens_per_second\": " << Decode(peer, n, seconds) << "}";
  json << "}}\n";
  return json.good() ? 0 : 1;
}
