#include "trainer/data_parallel.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

namespace skein::trainer {
namespace {

// What a launcher's variables say; none is set but these.
int Launched(const std::map<std::string, std::string>& variables) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK",
                           "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}) {
    unsetenv(name);
  }
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  return LaunchedProcesses();
}

TEST(LaunchedProcesses, WhatTheLauncherSays) {
  EXPECT_EQ(Launched({}), 1);
  EXPECT_EQ(Launched({{"OMPI_COMM_WORLD_SIZE", "1"}}), 1);
  EXPECT_EQ(Launched({{"OMPI_COMM_WORLD_SIZE", "4"}}), 4);         // Open MPI's mpirun
  EXPECT_EQ(Launched({{"PMI_SIZE", "3"}, {"PMI_RANK", "0"}}), 3);  // MPICH's
  EXPECT_EQ(Launched({{"SLURM_STEP_NUM_TASKS", "2"}}), 2);         // srun
  EXPECT_EQ(Launched({{"SLURM_NTASKS", "2"}, {"PMIX_RANK", "1"}}), 2);
  // A batch script, which starts one process itself, or mpirun.
  EXPECT_EQ(Launched({{"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "0"}}), 1);
  EXPECT_EQ(Launched({{"SLURM_NTASKS", "2"}, {"OMPI_COMM_WORLD_SIZE", "1"}, {"PMIX_RANK", "0"}}),
            1);
}

TEST(DataParallel, OneProcessAgreesWithItself) {
  ASSERT_EQ(Launched({}), 1);
  const auto one = DataParallel::Join();
  ASSERT_TRUE(one.ok());
  DataParallel& self = **one;
  EXPECT_TRUE(self.lead());
  EXPECT_EQ(self.size(), 1);
  EXPECT_GE(self.threads(), 1);
  EXPECT_TRUE(self.Agree(absl::OkStatus()).ok());
  EXPECT_EQ(self.Agree(absl::InternalError("why")), absl::InternalError("why"));
  EXPECT_EQ(self.SaidByLead(absl::InternalError("why")), absl::InternalError("why"));
  EXPECT_TRUE(self.Same(7));
  EXPECT_FALSE(self.Any(false));
  EXPECT_TRUE(self.Any(true));
  EXPECT_EQ(self.Sum(2.5), 2.5);
}

}  // namespace
}  // namespace skein::trainer
