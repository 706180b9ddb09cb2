# layering: fails the build when a file includes what its room may not (README, "Layout"). Part of every build of a
# program, and of `all`; it runs again when a source has changed, in a fraction of a second.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(patterns)
foreach(room kernels engine server trainer client)
  foreach(ending h cc cu cuh inc)
    list(APPEND patterns "${CMAKE_SOURCE_DIR}/${room}/*.${ending}")
  endforeach()
endforeach()
file(GLOB_RECURSE checked CONFIGURE_DEPENDS ${patterns})
set(script "${CMAKE_SOURCE_DIR}/tests/layering_test.py")
set(stamp "${CMAKE_BINARY_DIR}/layering.stamp")
add_custom_command(OUTPUT "${stamp}" COMMAND Python3::Interpreter "${script}" --check
                   COMMAND "${CMAKE_COMMAND}" -E touch "${stamp}" DEPENDS ${checked} "${script}"
                   COMMENT "Checking who includes whom" VERBATIM)
add_custom_target(layering ALL DEPENDS "${stamp}")
