#pragma once
// What may be sampled next, decided token by token: the hook for grammars. Made by the submitting
// thread, then used by the engine thread alone, between steps: be quick, allocate nothing.

#include <cstdint>
#include <memory>
#include <span>

namespace skein::engine {

class Constraint {
 public:
  virtual ~Constraint() = default;
  // One bit a token id, [ceil(V/32)] words: set, it may come next. Id 0 ends the document. None set
  // fails the sequence. Valid until Accept.
  virtual std::span<const uint32_t> Allowed() const = 0;
  virtual void Accept(int32_t token) = 0;  // it was sampled
  // A copy that goes its own way.
  virtual std::unique_ptr<Constraint> Clone() const = 0;
};

}  // namespace skein::engine
