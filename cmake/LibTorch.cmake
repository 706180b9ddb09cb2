# LibTorch from the torch wheel. Its own TorchConfig.cmake insists on a CUDA toolkit, so the two libraries
# that the CPU build needs are declared here: skein::torch = torch_cpu + c10.

set(SKEIN_TORCH_ROOT "${SKEIN_DEPS}/torch-2.11.0" CACHE PATH "Where the torch wheel was unpacked")
if(NOT EXISTS "${SKEIN_TORCH_ROOT}/torch/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch is not in ${SKEIN_TORCH_ROOT}. Run deploy/install-deps.sh, name the folder with "
                      "-DSKEIN_DEPS=..., or leave the trainer out with -DSKEIN_TORCH=OFF.")
endif()

foreach(lib c10 torch_cpu)
  add_library(skein_${lib} SHARED IMPORTED GLOBAL)
  set_target_properties(skein_${lib} PROPERTIES
    IMPORTED_LOCATION "${SKEIN_TORCH_ROOT}/torch/lib/lib${lib}.so")
endforeach()
add_library(skein_torch INTERFACE)
target_include_directories(skein_torch SYSTEM INTERFACE
  "${SKEIN_TORCH_ROOT}/torch/include" "${SKEIN_TORCH_ROOT}/torch/include/torch/csrc/api/include")
target_compile_definitions(skein_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
# --no-as-needed: operators register themselves when the library is loaded, nothing names them.
target_link_options(skein_torch INTERFACE "LINKER:--no-as-needed" "LINKER:--allow-shlib-undefined")
target_link_libraries(skein_torch INTERFACE skein_torch_cpu skein_c10)
add_library(skein::torch ALIAS skein_torch)
