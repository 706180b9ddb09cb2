#pragma once
// Named instances of something large that requests use while it may be replaced: models. A request
// takes a reference and keeps it; what is replaced or removed lives on until its last reference has
// gone. No gRPC, no device: tested with plain threads under the sanitizers.
//
// An instance dies on the registry's own thread, never on the one that drops the last reference:
// that may be a thread which the instance has to join.

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"

namespace skein::server {

// Thread-safe. All references must have gone before it is destroyed, or go while it is.
template <typename T>
class InstanceRegistry {
 public:
  using Ref = std::shared_ptr<T>;

  InstanceRegistry() : reaper_([this] { Reap(); }) {}
  ~InstanceRegistry();
  InstanceRegistry(const InstanceRegistry&) = delete;
  InstanceRegistry& operator=(const InstanceRegistry&) = delete;

  // Empty: the default. Null: nothing has this name.
  Ref Find(const std::string& name) const;
  // In order of name.
  std::vector<std::pair<std::string, Ref>> Named() const;
  // Replaced or removed, and still used by somebody.
  std::vector<Ref> Retired() const;
  // The first one added, until it is removed; then the first by name. Empty when there is none.
  std::string default_name() const;

  // From now on Find(name) gives this one. False, and *instance is kept, when the name is taken and
  // not to be replaced.
  bool Add(const std::string& name, std::unique_ptr<T>* instance, bool replace);
  // False: nothing has this name.
  bool Remove(const std::string& name);

 private:
  using Names = std::map<std::string, Ref>;

  Ref Own(std::unique_ptr<T> instance) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Reap();

  mutable std::mutex mu_;
  std::condition_variable wake_;
  Names names_ ABSL_GUARDED_BY(mu_);
  std::string default_ ABSL_GUARDED_BY(mu_);
  std::vector<std::weak_ptr<T>> alive_ ABSL_GUARDED_BY(mu_);
  std::deque<std::unique_ptr<T>> dead_ ABSL_GUARDED_BY(mu_);
  int64_t not_freed_ ABSL_GUARDED_BY(mu_) = 0;  // instances alive or dead
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread reaper_;  // last: it uses all of the above
};

template <typename T>
InstanceRegistry<T>::~InstanceRegistry() {
  Names names;  // dropped without the lock, which the deleter takes
  {
    std::lock_guard<std::mutex> lock(mu_);
    names.swap(names_);
    default_.clear();
    stop_ = true;
  }
  names.clear();
  wake_.notify_one();
  reaper_.join();
}

template <typename T>
typename InstanceRegistry<T>::Ref InstanceRegistry<T>::Find(const std::string& name) const {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = names_.find(name.empty() ? default_ : name);
  return it == names_.end() ? nullptr : it->second;
}

template <typename T>
std::vector<std::pair<std::string, typename InstanceRegistry<T>::Ref>> InstanceRegistry<T>::Named()
    const {
  std::lock_guard<std::mutex> lock(mu_);
  return {names_.begin(), names_.end()};
}

template <typename T>
std::vector<typename InstanceRegistry<T>::Ref> InstanceRegistry<T>::Retired() const {
  std::vector<Ref> all;  // declared before the lock: what is dropped is dropped after it
  std::vector<Ref> retired;
  std::lock_guard<std::mutex> lock(mu_);
  for (const std::weak_ptr<T>& weak : alive_) {
    Ref instance = weak.lock();
    if (instance == nullptr) continue;
    const bool named = std::any_of(names_.begin(), names_.end(),
                                   [&](const auto& entry) { return entry.second == instance; });
    (named ? all : retired).push_back(std::move(instance));
  }
  return retired;
}

template <typename T>
std::string InstanceRegistry<T>::default_name() const {
  std::lock_guard<std::mutex> lock(mu_);
  return default_;
}

template <typename T>
typename InstanceRegistry<T>::Ref InstanceRegistry<T>::Own(std::unique_ptr<T> instance) {
  std::erase_if(alive_, [](const std::weak_ptr<T>& weak) { return weak.expired(); });
  Ref owned(instance.release(), [this](T* last) {
    std::lock_guard<std::mutex> lock(mu_);
    dead_.push_back(std::unique_ptr<T>(last));
    wake_.notify_one();
  });
  alive_.push_back(owned);
  ++not_freed_;
  return owned;
}

template <typename T>
bool InstanceRegistry<T>::Add(const std::string& name, std::unique_ptr<T>* instance, bool replace) {
  Ref old;  // dropped without the lock
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = names_.find(name);
  if (it != names_.end() && !replace) return false;
  Ref& place = names_[name];
  old = std::exchange(place, Own(std::move(*instance)));
  if (default_.empty()) default_ = name;
  return true;
}

template <typename T>
bool InstanceRegistry<T>::Remove(const std::string& name) {
  Ref old;
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = names_.find(name);
  if (it == names_.end()) return false;
  old = std::move(it->second);
  names_.erase(it);
  if (default_ == name) default_ = names_.empty() ? std::string() : names_.begin()->first;
  return true;
}

template <typename T>
void InstanceRegistry<T>::Reap() {
  std::unique_lock<std::mutex> lock(mu_);
  while (true) {
    wake_.wait(lock, [this] { return !dead_.empty() || (stop_ && not_freed_ == 0); });
    if (dead_.empty()) return;
    std::unique_ptr<T> instance = std::move(dead_.front());
    dead_.pop_front();
    lock.unlock();
    instance.reset();
    lock.lock();
    --not_freed_;
  }
}

}  // namespace skein::server
