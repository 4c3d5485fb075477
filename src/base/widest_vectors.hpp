#pragma once

namespace awex {

#if defined(__x86_64__)

/// Whether this processor, and the system on it, have what `with_widest_vectors` compiles for.
/// @{
inline const bool kHasAvx2 = __builtin_cpu_supports("avx2") > 0;
inline const bool kHasAvx512 = __builtin_cpu_supports("avx512f") > 0 &&
                               __builtin_cpu_supports("avx512bw") > 0 &&
                               __builtin_cpu_supports("avx512dq") > 0 &&
                               __builtin_cpu_supports("avx512vl") > 0;
/// @}

/// By value: what is written through pointers cannot change `work`, which the compiler must know to
/// make vectors.
/// @{
template <class Work>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] auto with_avx512(Work work) {
  return work();
}

template <class Work>
[[gnu::target("avx2")]] auto with_avx2(Work work) {
  return work();
}
/// @}

/// Returns work(), of which each processor runs the version compiled for its own vectors: a program
/// that is built for any x86-64 may use no more than 16 bytes of them. `work` is a lambda with
/// __attribute__((always_inline)), as only what is inlined is compiled anew; the loops that are to
/// become vectors stand in it. Results are the same bits whatever is chosen.
template <class Work>
auto with_widest_vectors(const Work& work) {
  if (kHasAvx512) return with_avx512(work);
  if (kHasAvx2) return with_avx2(work);
  return work();
}

#else

template <class Work>
auto with_widest_vectors(const Work& work) {
  return work();
}

#endif

}  // namespace awex
