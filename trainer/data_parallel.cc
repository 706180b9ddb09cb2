#include "trainer/data_parallel.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "kernels/cpu/host_limits.h"

namespace skein::trainer {
namespace {

class OneProcess final : public DataParallel {
 public:
  OneProcess() : DataParallel(0, 1, kernels::UsableThreads()) {}
};

int Number(const char* variable) {
  const char* text = getenv(variable);
  int value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : 0;
}

}  // namespace

int LaunchedProcesses() {
  // Open MPI's mpirun, whatever it was started by itself.
  if (const int n = Number("OMPI_COMM_WORLD_SIZE"); n > 0) return n;
  // Other MPIs' and srun --mpi=pmi2; srun. SLURM_NTASKS alone does not count: a batch script has it
  // too, and starts one process.
  const bool task = getenv("PMI_RANK") != nullptr || getenv("PMIX_RANK") != nullptr;
  return std::max(
      {1, Number("PMI_SIZE"), Number("SLURM_STEP_NUM_TASKS"), task ? Number("SLURM_NTASKS") : 1});
}

absl::StatusOr<std::unique_ptr<DataParallel>> DataParallel::Join() {
  const int launched = LaunchedProcesses();
  if (launched == 1) return std::make_unique<OneProcess>();
  SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<DataParallel> all, JoinByMpi());
  if (all->size() == launched) return all;
  return absl::FailedPreconditionError(
      absl::StrCat("this is one of ", launched, " processes, but MPI finds ", all->size(),
                   ": start them with Open MPI's own mpirun, or with srun --mpi=pmix"));
}

void DataParallel::StartSum(const float* part, float* total, int64_t n) {
  std::copy(part, part + n, total);
}

double DataParallel::Sum(double value) {
  Sum(absl::MakeSpan(&value, 1));
  return value;
}

double DataParallel::FromLead(double value) {
  FromLead(&value, sizeof(value));
  return value;
}

bool DataParallel::Same(uint64_t value) {
  uint64_t expected = value;
  FromLead(&expected, sizeof(expected));
  return !Any(value != expected);
}

absl::Status DataParallel::Agree(const absl::Status& here) {
  const int first_failed = size_ - static_cast<int>(Max(here.ok() ? 0 : size_ - rank_));
  if (first_failed == size_) return absl::OkStatus();
  return rank_ == first_failed ? here : absl::AbortedError("");
}

absl::Status DataParallel::SaidByLead(const absl::Status& status) const {
  return lead() ? status : absl::Status(status.code(), "");
}

}  // namespace skein::trainer
