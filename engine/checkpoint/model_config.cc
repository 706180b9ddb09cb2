// Sizes and ranks of an RWKV-7 out of the names and shapes of its tensors. What is no RWKV-7 is
// named by foreign_models.h before the sizes are looked at.

#include "engine/model_config.h"

#include <limits>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/foreign_models.h"

namespace skein::engine {
namespace {

using Shape = std::vector<int64_t>;

// Bounds that keep every product of two sizes far from overflow.
constexpr int64_t kMaxSize = 1 << 24;
constexpr int32_t kMaxLayers = 10000;

std::string Print(const Shape& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

// Walks the tensors that an RWKV-7 has and checks each once.
class Recognizer {
 public:
  explicit Recognizer(const std::vector<TensorShape>& tensors) {
    for (const TensorShape& tensor : tensors) shapes_.emplace(tensor.name, &tensor.shape);
  }
  absl::StatusOr<ModelConfig> Run();

 private:
  absl::Status ReadSizes();
  absl::Status CheckTop();
  absl::Status CheckBlock(int32_t layer);
  absl::Status CheckTimeMix(const std::string& att, int32_t layer);
  absl::Status CheckRest() const;
  absl::Status ReadLayers();
  absl::Status ReadRank(const std::string& name, int32_t* rank);

  absl::StatusOr<const Shape*> Get(const std::string& name);
  // Exactly this shape.
  absl::Status Matrix(const std::string& name, int64_t rows, int64_t columns);
  // [C], or [1, 1, C] as older files have it.
  absl::Status Vector(const std::string& name);
  absl::Status Norm(const std::string& name);
  absl::Status Wrong(const std::string& name, const Shape& found, absl::string_view expected) const;

  std::unordered_map<std::string, const Shape*> shapes_;
  std::unordered_set<std::string> seen_;
  ModelConfig config_;
};

absl::StatusOr<const Shape*> Recognizer::Get(const std::string& name) {
  const auto found = shapes_.find(name);
  if (found == shapes_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("RWKV-7 checkpoint without the tensor ", Quoted(name)));
  }
  seen_.insert(name);
  return found->second;
}

absl::Status Recognizer::Wrong(const std::string& name, const Shape& found,
                               absl::string_view expected) const {
  return absl::InvalidArgumentError(absl::StrCat("RWKV-7 checkpoint whose tensor ", Quoted(name),
                                                 " has the shape ", Print(found), "; expected ",
                                                 expected));
}

absl::Status Recognizer::Matrix(const std::string& name, int64_t rows, int64_t columns) {
  SKEIN_ASSIGN_OR_RETURN(const Shape* shape, Get(name));
  const Shape expected = {rows, columns};
  if (*shape != expected) return Wrong(name, *shape, Print(expected));
  return absl::OkStatus();
}

absl::Status Recognizer::Vector(const std::string& name) {
  SKEIN_ASSIGN_OR_RETURN(const Shape* shape, Get(name));
  bool good = !shape->empty() && shape->back() == config_.C;
  for (size_t d = 0; d + 1 < shape->size(); ++d) good = good && (*shape)[d] == 1;
  if (!good) return Wrong(name, *shape, absl::StrCat("[", config_.C, "]"));
  return absl::OkStatus();
}

absl::Status Recognizer::Norm(const std::string& name) {
  SKEIN_RETURN_IF_ERROR(Vector(name + ".weight"));
  return Vector(name + ".bias");
}

absl::Status Recognizer::ReadLayers() {
  int32_t last = -1;
  for (const auto& [name, shape] : shapes_) {
    if (!absl::StartsWith(name, "blocks.")) continue;
    const absl::string_view rest = absl::string_view(name).substr(7);
    int32_t layer = -1;
    const absl::string_view digits = rest.substr(0, rest.find('.'));
    if (!absl::SimpleAtoi(digits, &layer) || layer < 0 || layer >= kMaxLayers ||
        absl::StrCat(layer) != digits) {
      return absl::InvalidArgumentError(
          absl::StrCat("RWKV-7 checkpoint with the tensor ", Quoted(name),
                       ", whose layer is no number below ", kMaxLayers));
    }
    last = std::max(last, layer);
  }
  config_.L = last + 1;
  return absl::OkStatus();
}

absl::Status Recognizer::ReadSizes() {
  // A matrix with two sizes that are taken from it; the other tensors must agree with them.
  const auto read = [this](const std::string& name, int32_t* rows, int32_t* columns) {
    auto shape = Get(name);
    if (!shape.ok()) return shape.status();
    const Shape& found = **shape;
    if (found.size() != 2 || found[0] < 1 || found[1] < 1 || found[0] > kMaxSize ||
        found[1] > kMaxSize) {
      return Wrong(name, found, "a matrix");
    }
    *rows = static_cast<int32_t>(found[0]);
    *columns = static_cast<int32_t>(found[1]);
    return absl::OkStatus();
  };
  SKEIN_RETURN_IF_ERROR(read("emb.weight", &config_.V, &config_.C));
  SKEIN_RETURN_IF_ERROR(read("blocks.0.att.r_k", &config_.H, &config_.N));
  if (int64_t{config_.H} * config_.N != config_.C) {
    return absl::InvalidArgumentError(
        absl::StrCat("RWKV-7 checkpoint with ", config_.H, " heads of ", config_.N,
                     " ('blocks.0.att.r_k') but a width of ", config_.C, " ('emb.weight')"));
  }
  int32_t columns = 0;
  return read("blocks.0.ffn.key.weight", &config_.F, &columns);
}

// The rank of the first layer that has the branch; CheckTimeMix holds the other layers to it.
absl::Status Recognizer::ReadRank(const std::string& name, int32_t* rank) {
  SKEIN_ASSIGN_OR_RETURN(const Shape* shape, Get(name));
  if (shape->size() != 2 || (*shape)[1] < 1 || (*shape)[1] > kMaxSize) {
    return Wrong(name, *shape, absl::StrCat("[", config_.C, ", rank]"));
  }
  *rank = static_cast<int32_t>((*shape)[1]);
  return absl::OkStatus();
}

absl::Status Recognizer::CheckTop() {
  SKEIN_RETURN_IF_ERROR(Norm("blocks.0.ln0"));
  SKEIN_RETURN_IF_ERROR(Norm("ln_out"));
  return Matrix("head.weight", config_.V, config_.C);
}

absl::Status Recognizer::CheckTimeMix(const std::string& att, int32_t layer) {
  for (const char* name : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"}) {
    SKEIN_RETURN_IF_ERROR(Vector(att + name));
  }
  SKEIN_RETURN_IF_ERROR(Matrix(att + "r_k", config_.H, config_.N));
  const std::pair<char, int32_t> branches[] = {
      {'w', config_.rank_w}, {'a', config_.rank_a}, {'v', config_.rank_v}, {'g', config_.rank_g}};
  for (const auto& [letter, rank] : branches) {
    const std::string branch = att + letter;
    // Layer 0 makes the value that the others lean on; files may leave its own branch out.
    const bool absent =
        shapes_.count(branch + "0") + shapes_.count(branch + "1") + shapes_.count(branch + "2") ==
        0;
    if (letter == 'v' && layer == 0 && absent) continue;
    if (letter != 'g') SKEIN_RETURN_IF_ERROR(Vector(branch + "0"));
    SKEIN_RETURN_IF_ERROR(Matrix(branch + "1", config_.C, rank));
    SKEIN_RETURN_IF_ERROR(Matrix(branch + "2", rank, config_.C));
  }
  for (const char* name : {"receptance.weight", "key.weight", "value.weight", "output.weight"}) {
    SKEIN_RETURN_IF_ERROR(Matrix(att + name, config_.C, config_.C));
  }
  return Norm(att + "ln_x");
}

absl::Status Recognizer::CheckBlock(int32_t layer) {
  const std::string block = absl::StrCat("blocks.", layer, ".");
  SKEIN_RETURN_IF_ERROR(Norm(block + "ln1"));
  SKEIN_RETURN_IF_ERROR(Norm(block + "ln2"));
  SKEIN_RETURN_IF_ERROR(CheckTimeMix(block + "att.", layer));
  SKEIN_RETURN_IF_ERROR(Vector(block + "ffn.x_k"));
  SKEIN_RETURN_IF_ERROR(Matrix(block + "ffn.key.weight", config_.F, config_.C));
  return Matrix(block + "ffn.value.weight", config_.C, config_.F);
}

// A tensor that RWKV-7 does not have would be left out of the computation: a variant, not this one.
absl::Status Recognizer::CheckRest() const {
  std::string first;
  for (const auto& [name, shape] : shapes_) {
    if (seen_.count(name) == 0 && (first.empty() || name < first)) first = name;
  }
  if (first.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("RWKV-7 checkpoint with ", shapes_.size() - seen_.size(),
                   " tensors that plain RWKV-7 does "
                   "not have, such as ",
                   Quoted(first), ": an experimental variant, which is not supported"));
}

absl::StatusOr<ModelConfig> Recognizer::Run() {
  SKEIN_RETURN_IF_ERROR(ReadLayers());
  SKEIN_RETURN_IF_ERROR(ReadSizes());
  SKEIN_RETURN_IF_ERROR(ReadRank("blocks.0.att.w1", &config_.rank_w));
  SKEIN_RETURN_IF_ERROR(ReadRank("blocks.0.att.a1", &config_.rank_a));
  SKEIN_RETURN_IF_ERROR(ReadRank("blocks.0.att.g1", &config_.rank_g));
  const std::string v1 = config_.L > 1 ? "blocks.1.att.v1" : "blocks.0.att.v1";
  if (config_.L > 1 || shapes_.count(v1) > 0) {
    SKEIN_RETURN_IF_ERROR(ReadRank(v1, &config_.rank_v));
  }
  SKEIN_RETURN_IF_ERROR(CheckTop());
  for (int32_t layer = 0; layer < config_.L; ++layer) SKEIN_RETURN_IF_ERROR(CheckBlock(layer));
  SKEIN_RETURN_IF_ERROR(CheckRest());
  // The value branch of layer 0 does not count, whether it is there or not: nothing uses it.
  for (const auto& [name, shape] : shapes_) {
    if (absl::StartsWith(name, "blocks.0.att.v") && name != "blocks.0.att.value.weight") continue;
    int64_t elements = 1;
    for (int64_t size : *shape) elements *= size;
    config_.parameters += elements;
  }
  return config_;
}

}  // namespace

absl::StatusOr<ModelConfig> RecognizeModel(const std::vector<TensorShape>& tensors) {
  std::unordered_set<std::string> names;
  for (const TensorShape& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tensor ", Quoted(tensor.name), " is there twice"));
    }
  }
  SKEIN_RETURN_IF_ERROR(RefuseForeignModels(tensors));
  return Recognizer(tensors).Run();
}

std::string ModelConfig::ToString() const {
  const double count = static_cast<double>(parameters);
  const std::string size = parameters >= 1'000'000'000 ? absl::StrFormat("%.1f B", count / 1e9)
                           : parameters >= 1'000'000   ? absl::StrFormat("%.1f M", count / 1e6)
                                                       : absl::StrFormat("%.1f K", count / 1e3);
  return absl::StrFormat(
      "RWKV-7, %d layer%s, width %d, %d head%s of %d, vocabulary %d, %s parameters", L,
      L == 1 ? "" : "s", C, H, H == 1 ? "" : "s", N, V, size);
}

}  // namespace skein::engine
