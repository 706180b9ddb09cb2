#include "engine/checkpoint/foreign_models.h"

#include <algorithm>
#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"

namespace skein::engine {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

// The first name that contains `part`; empty when none does.
std::string Containing(const Shapes& shapes, absl::string_view part) {
  for (const auto& [name, shape] : shapes) {
    if (absl::StrContains(name, part)) return name;
  }
  return "";
}
std::string StartingWith(const Shapes& shapes, absl::string_view prefix) {
  const auto found = shapes.lower_bound(std::string(prefix));
  if (found == shapes.end() || !absl::StartsWith(found->first, prefix)) return "";
  return found->first;
}

absl::Status Refuse(absl::string_view what, const std::string& evidence) {
  return absl::InvalidArgumentError(absl::StrCat("this is ", what, " (it has the tensor ",
                                                 Quoted(evidence),
                                                 "); Skein runs RWKV-7 checkpoints"));
}

// Files that hold no model, or a model behind other names.
absl::Status RefuseOtherFiles(const Shapes& shapes) {
  struct Sign {
    bool prefix;
    absl::string_view part, what;
  };
  constexpr Sign kSigns[] = {
      {true, "_strategy", "a file converted for one strategy of the rwkv package"},
      {true, "_version", "a file converted for one strategy of the rwkv package"},
      {true, "_rescale_layer", "a file converted for one strategy of the rwkv package"},
      {false, "lora_A", "an adapter (LoRA), which must be merged into its model first"},
      {false, "lora_B", "an adapter (LoRA), which must be merged into its model first"},
      {true, "_forward_module.", "a training checkpoint whose names have a prefix to be removed"},
      {true, "module.", "a training checkpoint whose names have a prefix to be removed"},
      {true, "model.layers.",
       "a model in the layout of Hugging Face; use the original checkpoint of that model, if it is "
       "an RWKV-7"},
      {true, "model.embeddings.",
       "a model in the layout of Hugging Face; use the original checkpoint of that model, if it is "
       "an RWKV-7"},
      {true, "rwkv.blocks.", "an older RWKV in the layout of Hugging Face"},
      {true, "transformer.", "a transformer"},
  };
  for (const Sign& sign : kSigns) {
    const std::string found =
        sign.prefix ? StartingWith(shapes, sign.part) : Containing(shapes, sign.part);
    if (!found.empty()) return Refuse(sign.what, found);
  }
  if (shapes.count("emb.weight") > 0) return absl::OkStatus();
  const bool states = std::all_of(shapes.begin(), shapes.end(), [](const auto& entry) {
    return absl::EndsWith(entry.first, ".time_state");
  });
  if (states && !shapes.empty()) {
    return Refuse("a tuned state without its model", shapes.begin()->first);
  }
  std::vector<std::string> first;
  for (const auto& [name, shape] : shapes) {
    if (first.size() < 3) first.push_back(Quoted(name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("this is no RWKV checkpoint: it has no 'emb.weight' (",
                   first.empty() ? "it holds no tensors"
                                 : absl::StrCat("it starts with ", absl::StrJoin(first, ", ")),
                   "); Skein runs RWKV-7 checkpoints"));
}

absl::Status RefuseVariantsOf7(const Shapes& shapes) {
  struct Sign {
    absl::string_view part, what;
  };
  // In this order: RWKV-7b has the tensors of 7a too.
  constexpr Sign kSigns[] = {
      {"rosa", "an RWKV-8 preview (ROSA)"},
      {".qkv.k1", "an RWKV-7b (DeepEmbed and DeepEmbedAttention)"},
      {".qkv.kk.weight", "an RWKV-8 preview (hybrid)"},
      {".qkv.", "an experimental RWKV-7 with an attention branch"},
      {".ffn.s_emb", "an RWKV-7a (DeepEmbed)"},
      {".ffn.enn", "an RWKV-8 preview (rc00)"},
      {".att.time_state", "an RWKV-7 with a tuned state inside"},
  };
  for (const Sign& sign : kSigns) {
    const std::string found = Containing(shapes, sign.part);
    if (!found.empty()) return Refuse(sign.what, found);
  }
  return absl::OkStatus();
}

absl::Status RefuseOtherVersions(const Shapes& shapes) {
  const std::string att = "blocks.0.att.";
  const auto has = [&](absl::string_view name) {
    return shapes.count(absl::StrCat(att, name)) > 0;
  };
  if (has("r_k")) return RefuseVariantsOf7(shapes);
  for (const char* part : {"head_q.weight", "head_k.weight", "tiny_"}) {
    const std::string found = Containing(shapes, part);
    if (!found.empty()) return Refuse("an early experiment (RWKV-1 to RWKV-4)", found);
  }
  if (has("time_maa_rkvw_w1")) {
    return Refuse("an experimental variant of RWKV-6", att + "time_maa_rkvw_w1");
  }
  if (has("time_maa_x")) return Refuse("an RWKV-6", att + "time_maa_x");
  const auto decay = shapes.find(att + "time_decay");
  if (has("ln_x.weight") && decay != shapes.end()) {
    if (decay->second.size() == 2 && decay->second[1] > 1) {
      return Refuse("an RWKV-5.2", att + "time_decay");
    }
    if (has("gate.weight")) return Refuse("an RWKV-5.1", att + "gate.weight");
    return Refuse("an RWKV-5.0", att + "ln_x.weight");
  }
  if (has("time_decay") && has("time_first") && has("time_mix_k")) {
    return Refuse("an RWKV-4", att + "time_mix_k");
  }
  const std::string time = StartingWith(shapes, att + "time_");
  if (!time.empty()) return Refuse("an RWKV-1 to RWKV-3 or an experiment", time);
  return absl::InvalidArgumentError(
      "this is no RWKV-7 checkpoint: it has 'emb.weight' but no 'blocks.0.att.r_k'");
}

}  // namespace

absl::Status RefuseForeignModels(const std::vector<TensorShape>& tensors) {
  Shapes shapes;
  for (const TensorShape& tensor : tensors) shapes[tensor.name] = tensor.shape;
  SKEIN_RETURN_IF_ERROR(RefuseOtherFiles(shapes));
  return RefuseOtherVersions(shapes);
}

}  // namespace skein::engine
