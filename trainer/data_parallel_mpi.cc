#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/host_limits.h"
#include "trainer/data_parallel.h"

namespace skein::trainer {
namespace {

// Errors need no handling: MPI's own handler says them and ends all processes.
class MpiProcesses final : public DataParallel {
 public:
  MpiProcesses(int rank, int size, int threads) : DataParallel(rank, size, threads) {}
  ~MpiProcesses() override { MPI_Finalize(); }

  void Sum(absl::Span<double> values) override;
  double Max(double value) override;
  void FromLead(void* data, size_t bytes) override;
  void StartSum(const float* part, float* total, int64_t n) override;
  void MoveSums() override;
  void FinishSums() override;
  void EndAll() override { MPI_Abort(MPI_COMM_WORLD, 1); }

 private:
  std::vector<MPI_Request> sums_;  // under way
};

// By way of the lead: an all-reduce need not give all the same bytes.
void MpiProcesses::Sum(absl::Span<double> values) {
  const int n = static_cast<int>(values.size());
  MPI_Reduce(lead() ? MPI_IN_PLACE : values.data(), values.data(), n, MPI_DOUBLE, MPI_SUM, 0,
             MPI_COMM_WORLD);
  MPI_Bcast(values.data(), n, MPI_DOUBLE, 0, MPI_COMM_WORLD);
}

double MpiProcesses::Max(double value) {
  MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return value;
}

void MpiProcesses::FromLead(void* data, size_t bytes) {
  constexpr size_t kMost = size_t{1} << 30;  // MPI counts in int
  for (char* at = static_cast<char*>(data); bytes > 0;) {
    const size_t n = std::min(bytes, kMost);
    MPI_Bcast(at, static_cast<int>(n), MPI_BYTE, 0, MPI_COMM_WORLD);
    at += n;
    bytes -= n;
  }
}

void MpiProcesses::StartSum(const float* part, float* total, int64_t n) {
  MPI_Request& request = sums_.emplace_back();
  MPI_Iallreduce(part, total, static_cast<int>(n), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD, &request);
}

void MpiProcesses::MoveSums() {
  int done = 0;
  MPI_Testall(static_cast<int>(sums_.size()), sums_.data(), &done, MPI_STATUSES_IGNORE);
}

void MpiProcesses::FinishSums() {
  MPI_Waitall(static_cast<int>(sums_.size()), sums_.data(), MPI_STATUSES_IGNORE);
  sums_.clear();
}

// A launcher may have bound each process to cores of its own, or let all of a machine use the same
// ones. Either way they share what any of them may use.
int ThreadShare() {
  MPI_Comm machine;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  int processes = 1;
  MPI_Comm_size(machine, &processes);
  cpu_set_t mine, all;
  CPU_ZERO(&mine);  // and so it stays where there are more CPUs than it holds
  sched_getaffinity(0, sizeof mine, &mine);
  MPI_Allreduce(&mine, &all, sizeof mine, MPI_BYTE, MPI_BOR, machine);
  MPI_Comm_free(&machine);
  const int together = CPU_COUNT(&all) > 0 ? kernels::UsableThreads(all) : kernels::UsableThreads();
  return std::clamp(together / processes, 1, std::max(CPU_COUNT(&mine), 1));
}

}  // namespace

const bool kBuiltWithMpi = true;

absl::StatusOr<std::unique_ptr<DataParallel>> JoinByMpi() {
  int level = 0, rank = 0, size = 1;
  // FUNNELED: there are other threads (OpenMP's), but only the main one calls MPI.
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
  if (level < MPI_THREAD_FUNNELED)
    return absl::FailedPreconditionError("this MPI does not allow a process to have threads");
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return std::make_unique<MpiProcesses>(rank, size, ThreadShare());
}

}  // namespace skein::trainer
