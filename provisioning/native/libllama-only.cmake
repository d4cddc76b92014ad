# Injected into llama-cpp-python's CMake project (CMAKE_PROJECT_llama_cpp_INCLUDE) so that the wheel holds libllama and
# ggml and nothing else. The project forces LLAMA_BUILD_COMMON on in the cache; under policy CMP0126 a plain variable set
# first wins over that, and llama.cpp's `common` library, which no Python binding uses, is neither built nor installed.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_BUILD_TOOLS OFF)
set(LLAMA_BUILD_EXAMPLES OFF)
set(LLAMA_BUILD_TESTS OFF)
set(LLAMA_BUILD_SERVER OFF)
set(LLAMA_OPENSSL OFF)
set(LLAVA_BUILD OFF)
