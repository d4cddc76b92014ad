# Injected like libllama-only.cmake, for a wheel that is carried to other machines. The code for each processor is a library of its
# own, and ggml takes the best one that the machine can run when it starts; with GGML_CPU_ARM_ARCH there is one for that alone.
include("${CMAKE_CURRENT_LIST_DIR}/libllama-only.cmake")

set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
set(GGML_BACKEND_DL ON CACHE BOOL "" FORCE)
if(NOT GGML_CPU_ARM_ARCH)
    set(GGML_CPU_ALL_VARIANTS ON CACHE BOOL "" FORCE)
endif()

# One directory, beside libllama: `edge.engine.llama.library` has the backends loaded from there. The project's own install
# rules know nothing of the variants.
set(CMAKE_INSTALL_BINDIR llama_cpp/lib CACHE PATH "" FORCE)
set(CMAKE_INSTALL_LIBDIR llama_cpp/lib CACHE PATH "" FORCE)
set(CMAKE_INSTALL_INCLUDEDIR llama_cpp/include CACHE PATH "" FORCE)
set(CMAKE_INSTALL_RPATH "$ORIGIN")

# A wheel holds no links: libllama.so, libllama.so.0 and libllama.so.0.5.0 would be three copies.
set(CMAKE_PLATFORM_NO_VERSIONED_SONAME ON)

# Base images without a compiler have no OpenMP runtime: bring the compiler's own along.
execute_process(
    COMMAND ${CMAKE_C_COMPILER} -print-file-name=libgomp.so.1
    OUTPUT_VARIABLE EDGE_LIBGOMP OUTPUT_STRIP_TRAILING_WHITESPACE)
file(REAL_PATH "${EDGE_LIBGOMP}" EDGE_LIBGOMP)
if(NOT EXISTS "${EDGE_LIBGOMP}")
    message(FATAL_ERROR "the compiler has no libgomp.so.1: install it (Debian: libgomp1)")
endif()
install(FILES "${EDGE_LIBGOMP}" DESTINATION llama_cpp/lib RENAME libgomp.so.1)
