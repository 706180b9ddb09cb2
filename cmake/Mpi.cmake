# MPI for skein-train, by SKEIN_MPI. Sets SKEIN_WITH_MPI; then MPI::MPI_CXX is there.
set(SKEIN_WITH_MPI OFF)
if(SKEIN_MPI STREQUAL "OFF")
  message(STATUS "MPI: left out (SKEIN_MPI=OFF)")
  return()
endif()
set(MPI_CXX_SKIP_MPICXX ON)  # the C interface, not the C++ one of old
find_package(MPI COMPONENTS CXX QUIET)
if(MPI_CXX_FOUND)
  set(SKEIN_WITH_MPI ON)
  message(STATUS "MPI: ${MPI_CXX_COMPILER}")
elseif(SKEIN_MPI STREQUAL "AUTO")
  message(STATUS "MPI: not found; skein-train will be for one process (deploy/install-deps.sh --mpi installs it)")
else()
  message(FATAL_ERROR "SKEIN_MPI is ${SKEIN_MPI} and MPI was not found. Run deploy/install-deps.sh --mpi, or leave it "
                      "out with -DSKEIN_MPI=OFF.")
endif()
