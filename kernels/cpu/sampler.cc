#include "kernels/cpu/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/philox.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/row_math.h"

namespace skein::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-6f;
// A band of candidates this small is sorted instead of halved once more.
constexpr int kMaxBand = 512;
// Draw: how many weights are summed at once before the walk goes one by one.
constexpr int32_t kStride = 4096;

// The end of the kept ids in the order (key falling, id rising): kept are keys above `key`, and
// equal ones up to `id`.
struct Cut {
  float key = -std::numeric_limits<float>::max();
  int32_t id = std::numeric_limits<int32_t>::max();

  bool Keeps(float k, int32_t i) const { return k > key || (k == key && i <= id); }
};

bool Stricter(const Cut& a, const Cut& b) {
  return a.key > b.key || (a.key == b.key && a.id < b.id);
}

// The next greater number as comparisons see it here, where denormals count as zero.
float NextUp(float x) {
  constexpr float kTiny = std::numeric_limits<float>::min();
  if (x >= kTiny || x < -kTiny) return std::nextafter(x, kInfinity);
  return x < 0 ? 0.0f : kTiny;
}

// One row's candidates: weights[i] = exp((keys[i] - max) * scale).
struct Candidates {
  const RowMath& math;
  const float* keys = nullptr;
  const float* weights = nullptr;
  int32_t n = 0;
  float max = 0;
  float scale = 1;

  Above AtLeast(float threshold) const { return math.sum_above(keys, weights, 0, n, threshold); }
};

// When the ids taken so far are enough.
struct Goal {
  int64_t count = std::numeric_limits<int64_t>::max();
  double mass = std::numeric_limits<double>::infinity();

  bool MetBy(const Above& a) const { return a.count >= count || a.mass >= mass; }
};

// Takes the keys in [low, high), in order, on top of `taken` until the goal is met.
Cut CutInBand(const Candidates& c, const Goal& goal, Above taken, float low, float high) {
  struct Entry {
    float key;
    int32_t id;
  };
  std::array<Entry, kMaxBand> band;
  int size = 0;
  for (int32_t i = 0; i < c.n && size < kMaxBand; ++i) {
    if (c.keys[i] >= low && c.keys[i] < high) band[size++] = {c.keys[i], i};
  }
  std::sort(band.begin(), band.begin() + size, [](const Entry& a, const Entry& b) {
    return a.key > b.key || (a.key == b.key && a.id < b.id);
  });
  for (int i = 0; i < size; ++i) {
    ++taken.count;
    taken.mass += c.weights[band[i].id];
    if (goal.MetBy(taken)) return {band[i].key, band[i].id};
  }
  return {low, std::numeric_limits<int32_t>::max()};
}

// The same when all keys in the band are equal: no order but by id.
Cut CutAmongEqual(const Candidates& c, const Goal& goal, Above taken, float key) {
  for (int32_t i = 0; i < c.n; ++i) {
    if (c.keys[i] != key) continue;
    ++taken.count;
    taken.mass += c.weights[i];
    if (goal.MetBy(taken)) return {key, i};
  }
  return {key, std::numeric_limits<int32_t>::max()};
}

// The shortest beginning of the order that meets the goal; everything when nothing does. Looks for
// a pair of thresholds around the end of it: first by doubling steps down from the maximum, then by
// halving.
Cut FindCut(const Candidates& c, const Goal& goal) {
  float high = NextUp(c.max), low = c.max;
  Above above_high, above_low;
  for (float step = 1.0f / c.scale;; step *= 2) {
    low = std::max(c.max - step, -std::numeric_limits<float>::max());
    above_low = c.AtLeast(low);
    if (goal.MetBy(above_low)) break;
    if (low == -std::numeric_limits<float>::max()) return {};
    high = low;
    above_high = above_low;
  }
  while (above_low.count - above_high.count > kMaxBand) {
    const float middle = low / 2 + high / 2;
    if (middle <= low || middle >= high) return CutAmongEqual(c, goal, above_high, low);
    const Above above = c.AtLeast(middle);
    (goal.MetBy(above) ? low : high) = middle;
    (goal.MetBy(above) ? above_low : above_high) = above;
  }
  return CutInBand(c, goal, above_high, low, high);
}

// Mass of the kept ids in [begin, end).
double KeptMass(const Candidates& c, const Cut& cut, int32_t begin, int32_t end) {
  const int32_t split = std::clamp(cut.id < end ? cut.id + 1 : end, begin, end);
  return c.math.sum_above(c.keys, c.weights, begin, split, cut.key).mass +
         c.math.sum_above(c.keys, c.weights, split, end, NextUp(cut.key)).mass;
}

Cut ApplyFilters(const Candidates& c, const SampleRow& row) {
  Cut cut;
  if (row.top_k > 0 && row.top_k < c.n) {
    Goal goal;
    goal.count = row.top_k;
    cut = FindCut(c, goal);
  }
  if (row.top_p < 1.0f) {
    Goal goal;
    goal.mass = double{row.top_p} * KeptMass(c, cut, 0, c.n);
    const Cut by_mass = FindCut(c, goal);
    if (Stricter(by_mass, cut)) cut = by_mass;
  }
  if (row.min_p > 0.0f) {
    Cut by_ratio;
    by_ratio.key = std::min(c.max, c.max + std::log(row.min_p) / c.scale);
    if (Stricter(by_ratio, cut)) cut = by_ratio;
  }
  return cut;
}

// Inverse transform over the kept ids, rising. Whole strides are skipped by their sums.
int32_t Draw(const Candidates& c, const Cut& cut, double u) {
  double total = 0;
  for (int32_t i = 0; i < c.n; i += kStride)
    total += KeptMass(c, cut, i, std::min(c.n, i + kStride));
  const double target = u * total;
  double sum = 0;
  int32_t last = -1;
  for (int32_t begin = 0; begin < c.n; begin += kStride) {
    const int32_t end = std::min(c.n, begin + kStride);
    const double mass = KeptMass(c, cut, begin, end);
    if (mass == 0) continue;
    // The target may lie in the last rounding error of the total: then the last kept id is drawn.
    double inside = sum;
    const bool here = sum + mass > target;
    for (int32_t i = begin; i < end; ++i) {
      if (!cut.Keeps(c.keys[i], i) || c.weights[i] == 0) continue;
      last = i;
      inside += c.weights[i];
      if (here && inside > target) return i;
    }
    if (here) return last;
    sum += mass;
  }
  return last;
}

bool ChangesLogits(const SampleRow& row) {
  const bool penalties =
      row.presence_penalty != 0 || row.frequency_penalty != 0 || row.repetition_penalty != 1;
  return row.num_bias > 0 || row.mask != nullptr || (penalties && row.num_counts > 0);
}

void AdjustKeys(const SampleRow& row, int32_t vocab, float* keys) {
  for (int32_t i = 0; i < row.num_bias; ++i) {
    const TokenValue& b = row.bias[i];
    if (b.token >= 0 && b.token < vocab) keys[b.token] += b.value;
  }
  if (row.mask != nullptr) {
    for (int32_t i = 0; i < vocab; ++i) {
      if ((row.mask[i / 32] >> (i % 32) & 1u) == 0) keys[i] = -kInfinity;
    }
  }
  for (int32_t i = 0; i < row.num_counts; ++i) {
    const TokenValue& c = row.counts[i];
    if (c.token < 0 || c.token >= vocab) continue;
    float& key = keys[c.token];
    key = key > 0 ? key / row.repetition_penalty : key * row.repetition_penalty;
    key -= row.presence_penalty + row.frequency_penalty * c.value;
  }
}

// The most probable ids by the raw logits, by insertion: few, and most logits are below the least
// of them.
void FillTop(const float* logits, int32_t vocab, const RowSummary& summary, int32_t wanted,
             SampleResult* result) {
  const int32_t limit = std::min({wanted, vocab, int32_t{kMaxTopLogprobs}});
  TokenValue* top = result->top;
  int32_t size = 0;
  for (int32_t i = 0; i < vocab && limit > 0; ++i) {
    if (size == limit && !(logits[i] > top[size - 1].value)) continue;
    int32_t at = size < limit ? size++ : size - 1;
    for (; at > 0 && logits[i] > top[at - 1].value; --at) top[at] = top[at - 1];
    top[at] = {i, logits[i]};
  }
  for (int32_t i = 0; i < size; ++i) top[i].value = LogProb(summary, top[i].value);
  result->num_top = size;
}

int32_t PickToken(const RowMath& math, const float* keys, int32_t vocab, const SampleRow& row,
                  float* weights) {
  Candidates c{math, keys, weights, vocab, math.max(keys, vocab), 1.0f};
  if (!std::isfinite(c.max)) return -1;
  if (row.temperature < kGreedyBelow) return math.find(keys, vocab, c.max);
  const float scale = 1.0f / row.temperature;
  c.scale = row.top_p_before_temperature ? 1.0f : scale;
  math.exp_weights(keys, vocab, c.max, c.scale, weights);
  const Cut cut = ApplyFilters(c, row);
  if (c.scale != scale) {
    c.scale = scale;
    math.exp_weights(keys, vocab, c.max, scale, weights);
  }
  return Draw(c, cut, PhiloxUniform(row.seed, row.position));
}

void SampleRowOf(const RowMath& math, const SampleParams& p, int32_t i, float* scratch) {
  const float* logits = p.logits + int64_t{i} * p.V;
  const SampleRow& row = p.rows[i];
  SampleResult& result = p.results[i];
  result.token = -1;
  result.logprob = 0;
  result.num_top = 0;
  const RowSummary summary = SummarizeRow(math, logits, p.V);
  if (!summary.valid) return;
  FillTop(logits, p.vocab, summary, row.num_logprobs, &result);
  const float* keys = logits;
  if (ChangesLogits(row)) {
    std::copy(logits, logits + p.vocab, scratch);
    AdjustKeys(row, p.vocab, scratch);
    keys = scratch;
  }
  const bool largest_is_known = keys == logits && p.vocab == p.V;
  result.token = largest_is_known && row.temperature < kGreedyBelow
                     ? summary.arg_max
                     : PickToken(math, keys, p.vocab, row, scratch + p.V);
  if (result.token >= 0) result.logprob = LogProb(summary, logits[result.token]);
}

void Sample(const RowMath& math, const SampleParams& p, Stream& stream) {
  const int64_t grain = GrainFor(1.0 * p.V);
  const int64_t useful = (p.n + grain - 1) / grain;
  const int64_t slices = std::min<int64_t>(useful, stream.executor().num_threads());
  // A slice, not a thread, owns a piece of the scratch memory.
  ForRange(stream, slices, 1, [&math, &p, slices](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      for (int64_t i = p.n * s / slices; i < p.n * (s + 1) / slices; ++i) {
        SampleRowOf(math, p, static_cast<int32_t>(i), p.scratch + s * 2 * p.V);
      }
    }
  });
}

void Score(const RowMath& math, const ScoreParams& p, Stream& stream) {
  ForRange(stream, p.n, GrainFor(1.0 * p.V), [&math, &p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* logits = p.logits + i * p.V;
      const RowSummary s = SummarizeRow(math, logits, p.V);
      p.logprob[i] =
          s.valid ? LogProb(s, logits[p.target[i]]) : std::numeric_limits<float>::quiet_NaN();
      p.greedy[i] = !s.has_nan && s.arg_max == p.target[i];
    }
  });
}

}  // namespace

void SampleRows(const SampleParams& p, Stream& stream) { Sample(PlainRowMath(), p, stream); }
void ScoreRows(const ScoreParams& p, Stream& stream) { Score(PlainRowMath(), p, stream); }

namespace avx2 {
void SampleRows(const SampleParams& p, Stream& stream) { Sample(*FastRowMath(), p, stream); }
void ScoreRows(const ScoreParams& p, Stream& stream) { Score(*FastRowMath(), p, stream); }
}  // namespace avx2

}  // namespace skein::kernels
