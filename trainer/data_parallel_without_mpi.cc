// In the place of data_parallel_mpi.cc where the build found no MPI (SKEIN_MPI in CMakeLists.txt).
#include "absl/strings/str_cat.h"
#include "trainer/data_parallel.h"

namespace skein::trainer {

const bool kBuiltWithMpi = false;

absl::StatusOr<std::unique_ptr<DataParallel>> JoinByMpi() {
  return absl::FailedPreconditionError(absl::StrCat(
      "this is one of ", LaunchedProcesses(),
      " processes, but skein-train was built without MPI, and each of them would train "
      "alone. Run 'deploy/install-deps.sh --mpi' and build again"));
}

}  // namespace skein::trainer
