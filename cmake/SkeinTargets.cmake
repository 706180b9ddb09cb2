# One place for what every target of ours gets: include root, warnings, sanitizers.

add_library(skein_options INTERFACE)
target_include_directories(skein_options INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_options(skein_options INTERFACE -Wall -Wextra -Werror -Wno-sign-compare)
if(SKEIN_SANITIZE STREQUAL "address")
  target_compile_options(skein_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined
                                                 -fno-omit-frame-pointer -g1)
  target_link_options(skein_options INTERFACE -fsanitize=address,undefined)
elseif(SKEIN_SANITIZE STREQUAL "thread")
  target_compile_options(skein_options INTERFACE -fsanitize=thread -g1)
  target_link_options(skein_options INTERFACE -fsanitize=thread)
elseif(SKEIN_SANITIZE)
  message(FATAL_ERROR "SKEIN_SANITIZE is '${SKEIN_SANITIZE}'; it must be empty, address or thread")
endif()

if(SKEIN_FUZZ)
  # Every library counts its branches, or the fuzzer would be blind.
  target_compile_options(skein_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# skein_library(name SOURCES ... LIBS ...): a static library of ours.
function(skein_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC skein_options ${ARG_LIBS})
endfunction()

# skein_program(name SOURCES ... LIBS ...): an installed program.
function(skein_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE skein_options ${ARG_LIBS})
  add_dependencies(${name} layering)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# skein_test(name SOURCES ... LIBS ... [LABELS ...]): a GoogleTest program, one ctest entry. The label
# "sanitize" marks the tests that the sanitizer presets build and run (no LibTorch, no gRPC).
function(skein_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE skein_options ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  # What is tested keeps its own level; this takes a third off the build. GCC 12 at this level takes the operators new and
  # delete that count allocations for a pair that does not match.
  target_compile_options(${name} PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O1> -Wno-mismatched-new-delete)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# skein_fuzzer(name SOURCES ... LIBS ...): a libFuzzer target (clang only).
function(skein_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE skein_options ${ARG_LIBS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()

# skein_bench(name SOURCES ... LIBS ...): a benchmark program.
function(skein_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE skein_options ${ARG_LIBS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bench")
endfunction()
