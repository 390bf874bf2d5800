# saekernels._cuda: a fat binary with a static CUDA runtime, so that it needs nothing but the driver.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(SAEKERNELS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SAEKERNELS_CUDA=ON, but nvcc was not found or does not work")
  endif()
  message(STATUS "nvcc was not found: no CUDA kernels")
  return()
endif()

execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE KNOWN_CODE ERROR_QUIET)
set(ARCHITECTURES "")
foreach(architecture ${SAEKERNELS_CUDA_ARCHITECTURES})
  string(REGEX MATCH "^[0-9]+" number ${architecture})
  if(KNOWN_CODE MATCHES "sm_${number}[^0-9a-z]")
    list(APPEND ARCHITECTURES ${architecture})
  else()
    message(STATUS "nvcc does not know sm_${number}: left out")
  endif()
endforeach()
if(NOT ARCHITECTURES)
  message(FATAL_ERROR "nvcc knows none of ${SAEKERNELS_CUDA_ARCHITECTURES}")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${ARCHITECTURES})
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/cuda/bindings.cpp csrc/cuda/group_by_latent.cu csrc/cuda/select.cu
                    csrc/cuda/topk.cu)
target_include_directories(_cuda PRIVATE csrc)
set_target_properties(_cuda PROPERTIES CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static
                                       CUDA_ARCHITECTURES "${ARCHITECTURES}")
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
string(REPLACE ";" " " ARCHITECTURE_NAMES "${ARCHITECTURES}")
target_compile_definitions(_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:SK_CUDA_RUNTIME>
  $<$<COMPILE_LANGUAGE:CXX>:SK_CUDA_COMPILER="nvcc ${CMAKE_CUDA_COMPILER_VERSION}">
  $<$<COMPILE_LANGUAGE:CXX>:SK_CUDA_ARCHITECTURES="${ARCHITECTURE_NAMES}">)
if(SAEKERNELS_WERROR)
  target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
