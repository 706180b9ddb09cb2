#pragma once
// The processes that train one model together, as mpirun or srun started them. Each takes its rows
// of every batch; their gradients are summed (gradient_buckets.h), so all make the same step. The
// lead alone writes files and speaks. This class is the one process of a run without a launcher;
// several are joined by MPI (data_parallel_mpi.cc).
//
// All processes make the same calls in the same order, from their main threads: a call waits for
// the others. So what may fail in one of them alone is passed through Agree before the next call.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace skein::trainer {

class DataParallel {
 public:
  // One process, unless a launcher started several. FAILED_PRECONDITION: it did, but they cannot
  // find each other.
  static absl::StatusOr<std::unique_ptr<DataParallel>> Join();

  virtual ~DataParallel() = default;
  DataParallel(const DataParallel&) = delete;
  DataParallel& operator=(const DataParallel&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool lead() const { return rank_ == 0; }
  // This process's share of the threads that those on its machine may use.
  int threads() const { return threads_; }

  // Sums over all processes, the same bytes in each.
  virtual void Sum(absl::Span<double> /*values*/) {}
  // The largest of all processes' values.
  virtual double Max(double value) { return value; }
  // The lead's bytes to all.
  virtual void FromLead(void* /*data*/, size_t /*bytes*/) {}

  // Begins total[i] = sum of all processes' part[i]. Both are left alone until FinishSums.
  virtual void StartSum(const float* part, float* total, int64_t n);
  // Moves begun sums on; MPI does it in no other thread.
  virtual void MoveSums() {}
  virtual void FinishSums() {}

  // After a failure that the others cannot know of: ends them, and this process. Of one: returns.
  virtual void EndAll() {}

  double Sum(double value);
  double FromLead(double value);
  bool Any(bool here) { return Max(here ? 1 : 0) > 0; }
  // Whether all have the same value.
  bool Same(uint64_t value);
  // OK when it is so in all processes. Else the first of those that failed keeps its error, and the
  // others get one with an empty message: there is nothing that they should say.
  absl::Status Agree(const absl::Status& here);
  // For an end that all come to: the message is the lead's.
  absl::Status SaidByLead(const absl::Status& status) const;

 protected:
  DataParallel(int rank, int size, int threads) : rank_(rank), size_(size), threads_(threads) {}

 private:
  const int rank_, size_, threads_;
};

// How many processes a launcher says it started with this one; 1: no launcher.
int LaunchedProcesses();

// Joins them by MPI, or says why it cannot.
absl::StatusOr<std::unique_ptr<DataParallel>> JoinByMpi();

// Whether this program was built with MPI.
extern const bool kBuiltWithMpi;

}  // namespace skein::trainer
