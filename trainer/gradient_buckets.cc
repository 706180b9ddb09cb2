#include "trainer/gradient_buckets.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

namespace skein::trainer {
GradientBuckets::GradientBuckets(Parameters* parameters, DataParallel* processes, int64_t bucket)
    : parameters_(parameters), processes_(processes) {
  if (processes->size() == 1) return;
  SKEIN_CHECK(bucket % 16 == 0);  // as parameters are aligned: none is of padding alone
  const int64_t n = parameters->gradient().numel();
  part_ = at::empty_like(parameters->gradient());
  for (int64_t begin = 0; begin < n; begin += bucket)
    buckets_.push_back({begin, std::min(n, begin + bucket), -1, {}});
  const std::vector<Parameter>& list = parameters->list();
  for (int i = 0; i < static_cast<int>(list.size()); ++i) {
    const Parameter& p = list[static_cast<size_t>(i)];
    const int64_t last = (p.offset + p.elements() - 1) / bucket;
    for (int64_t b = p.offset / bucket; b <= last; ++b)
      buckets_[static_cast<size_t>(b)].members.push_back(i);
  }
  for (Bucket& b : buckets_) b.first = b.members.front();
  std::stable_sort(buckets_.begin(), buckets_.end(),
                   [](const Bucket& a, const Bucket& b) { return a.first > b.first; });
}

void GradientBuckets::Begin() {
  for (Bucket& b : buckets_) b.missing = b.members.size();
  counting_ = true;
}

void GradientBuckets::OnGradient(int parameter) {
  if (!counting_) return;
  for (size_t i = sent_; i < buckets_.size(); ++i) {
    Bucket& b = buckets_[i];
    b.missing -= std::binary_search(b.members.begin(), b.members.end(), parameter) ? 1 : 0;
  }
  SendReady();
  processes_->MoveSums();
}

void GradientBuckets::SendReady() {
  while (sent_ < buckets_.size() && buckets_[sent_].missing == 0) Send(buckets_[sent_++]);
}

void GradientBuckets::Finish() {
  counting_ = false;
  while (sent_ < buckets_.size()) Send(buckets_[sent_++]);
  processes_->FinishSums();
  sent_ = 0;
}

void GradientBuckets::Send(const Bucket& b) {
  float* total = parameters_->gradient().mutable_data_ptr<float>() + b.begin;
  float* part = part_.mutable_data_ptr<float>() + b.begin;
  std::copy(total, total + (b.end - b.begin), part);
  processes_->StartSum(part, total, b.end - b.begin);
}

}  // namespace skein::trainer
