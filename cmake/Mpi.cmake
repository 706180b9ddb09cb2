# MPI for skein-train, by SKEIN_MPI. Sets SKEIN_WITH_MPI to ON (then MPI::MPI_CXX is there), OFF, or NOTFOUND, for which
# the Makefile looks.
if(SKEIN_MPI STREQUAL "OFF")
  set(SKEIN_WITH_MPI OFF CACHE INTERNAL "")
  message(STATUS "MPI: left out (SKEIN_MPI=OFF)")
  return()
endif()
set(MPI_CXX_SKIP_MPICXX ON)  # the C interface, not the C++ one of old
find_package(MPI COMPONENTS CXX QUIET)
if(MPI_CXX_FOUND)
  set(SKEIN_WITH_MPI ON CACHE INTERNAL "")
  message(STATUS "MPI: version ${MPI_CXX_VERSION}, ${MPI_CXX_LIBRARIES}")
elseif(SKEIN_MPI STREQUAL "AUTO")
  set(SKEIN_WITH_MPI NOTFOUND CACHE INTERNAL "")
  message(STATUS "MPI: not found; skein-train will be for one process (deploy/install-deps.sh --mpi installs it)")
else()
  message(FATAL_ERROR "SKEIN_MPI is ${SKEIN_MPI} and MPI was not found. Run deploy/install-deps.sh --mpi, or leave it "
                      "out with -DSKEIN_MPI=OFF.")
endif()
