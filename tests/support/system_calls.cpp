// Counts what our code takes from the system and from MPI: the linker's --wrap sends its calls of
// `f` to `__wrap_f`, and makes `f` itself known here as `__real_f`.
#include <fcntl.h>
#include <mpi.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <ios>

#include "support/call_counts.hpp"

namespace {

using awex::test::note_call;

/// Smaller pieces of the heap are strings and lists of a few entries, which come and go.
constexpr size_t kLargeBytes = 64 << 10;

/// By which of the calls of `syscall` that have no function of their own.
const char* name_of(long number) {
  if (number == SYS_pidfd_open) return "pidfd_open";
  if (number == SYS_pidfd_getfd) return "pidfd_getfd";
  return "another syscall";
}

}  // namespace

extern "C" {

// ---- Memory

void* __real_mmap(void*, size_t, int, int, int, off_t);
void* __wrap_mmap(void* address, size_t bytes, int protection, int kind, int fd, off_t offset) {
  note_call("mmap");
  return __real_mmap(address, bytes, protection, kind, fd, offset);
}

int __real_munmap(void*, size_t);
int __wrap_munmap(void* address, size_t bytes) {
  note_call("munmap");
  return __real_munmap(address, bytes);
}

int __real_mprotect(void*, size_t, int);
int __wrap_mprotect(void* address, size_t bytes, int protection) {
  note_call("mprotect");
  return __real_mprotect(address, bytes, protection);
}

int __real_madvise(void*, size_t, int);
int __wrap_madvise(void* address, size_t bytes, int advice) {
  note_call("madvise");
  return __real_madvise(address, bytes, advice);
}

int __real_mlock(const void*, size_t);
int __wrap_mlock(const void* address, size_t bytes) {
  note_call("mlock");
  return __real_mlock(address, bytes);
}

int __real_memfd_create(const char*, unsigned);
int __wrap_memfd_create(const char* name, unsigned flags) {
  note_call("memfd_create");
  return __real_memfd_create(name, flags);
}

int __real_ftruncate(int, off_t);
int __wrap_ftruncate(int fd, off_t bytes) {
  note_call("ftruncate");
  return __real_ftruncate(fd, bytes);
}

int __real_fallocate(int, int, off_t, off_t);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t bytes) {
  note_call("fallocate");
  return __real_fallocate(fd, mode, offset, bytes);
}

void* __real__Znwm(size_t);  // operator new(size_t)
void* __wrap__Znwm(size_t bytes) {
  if (bytes >= kLargeBytes) note_call("operator new of 64 KiB or more");
  return __real__Znwm(bytes);
}

void* __real_malloc(size_t);
void* __wrap_malloc(size_t bytes) {
  if (bytes >= kLargeBytes) note_call("malloc of 64 KiB or more");
  return __real_malloc(bytes);
}

// ---- Files, sockets, processes, threads

int __real_open(const char*, int, ...);
int __wrap_open(const char* path, int flags, ...) {
  note_call("open");
  va_list arguments;
  va_start(arguments, flags);
  const int mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, int) : 0;
  va_end(arguments);
  return __real_open(path, flags, mode);
}

int __real_shm_open(const char*, int, mode_t);
int __wrap_shm_open(const char* name, int flags, mode_t mode) {
  note_call("shm_open");
  return __real_shm_open(name, flags, mode);
}

// A file stream's opening: std::filebuf::open where the optimiser has inlined the constructors of
// std::ifstream, else they (for a std::string and for a const char*).
void* __real__ZNSt13basic_filebufIcSt11char_traitsIcEE4openEPKcSt13_Ios_Openmode(
    void*, const char*, std::ios_base::openmode);
void* __wrap__ZNSt13basic_filebufIcSt11char_traitsIcEE4openEPKcSt13_Ios_Openmode(
    void* buffer, const char* path, std::ios_base::openmode mode) {
  note_call("a file stream's open");
  return __real__ZNSt13basic_filebufIcSt11char_traitsIcEE4openEPKcSt13_Ios_Openmode(buffer, path,
                                                                                    mode);
}

void __real__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1ERKNSt7__cxx1112basic_stringIcS1_SaIcEEESt13_Ios_Openmode(
    void*, const void*, std::ios_base::openmode);
void __wrap__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1ERKNSt7__cxx1112basic_stringIcS1_SaIcEEESt13_Ios_Openmode(
    void* stream, const void* path, std::ios_base::openmode mode) {
  note_call("a file stream's open");
  __real__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1ERKNSt7__cxx1112basic_stringIcS1_SaIcEEESt13_Ios_Openmode(
      stream, path, mode);
}

void __real__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode(
    void*, const char*, std::ios_base::openmode);
void __wrap__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode(
    void* stream, const char* path, std::ios_base::openmode mode) {
  note_call("a file stream's open");
  __real__ZNSt14basic_ifstreamIcSt11char_traitsIcEEC1EPKcSt13_Ios_Openmode(stream, path, mode);
}

int __real_socket(int, int, int);
int __wrap_socket(int domain, int type, int protocol) {
  note_call("socket");
  return __real_socket(domain, type, protocol);
}

int __real_accept4(int, sockaddr*, socklen_t*, int);
int __wrap_accept4(int fd, sockaddr* address, socklen_t* bytes, int flags) {
  note_call("accept4");
  return __real_accept4(fd, address, bytes, flags);
}

int __real_dup(int);
int __wrap_dup(int fd) {
  note_call("dup");
  return __real_dup(fd);
}

// glibc's own wrapper passes six arguments on as well, whatever their number.
long __real_syscall(long, ...);
long __wrap_syscall(long number, ...) {
  note_call(name_of(number));
  va_list rest;
  va_start(rest, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(rest, long);
  va_end(rest);
  return __real_syscall(number, arguments[0], arguments[1], arguments[2], arguments[3],
                        arguments[4], arguments[5]);
}

// std::thread's start; its state is handed over by address.
void __real__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
    void*, void*, void (*)());
void __wrap__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
    void* thread, void* state, void (*depend)()) {
  note_call("std::thread");
  __real__ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
      thread, state, depend);
}

// ---- MPI

int __real_MPI_Comm_dup(MPI_Comm, MPI_Comm*);
int __wrap_MPI_Comm_dup(MPI_Comm from, MPI_Comm* to) {
  note_call("MPI_Comm_dup");
  return __real_MPI_Comm_dup(from, to);
}

int __real_MPI_Comm_split(MPI_Comm, int, int, MPI_Comm*);
int __wrap_MPI_Comm_split(MPI_Comm from, int color, int key, MPI_Comm* to) {
  note_call("MPI_Comm_split");
  return __real_MPI_Comm_split(from, color, key, to);
}

int __real_MPI_Comm_split_type(MPI_Comm, int, int, MPI_Info, MPI_Comm*);
int __wrap_MPI_Comm_split_type(MPI_Comm from, int type, int key, MPI_Info info, MPI_Comm* to) {
  note_call("MPI_Comm_split_type");
  return __real_MPI_Comm_split_type(from, type, key, info, to);
}

int __real_MPI_Comm_create(MPI_Comm, MPI_Group, MPI_Comm*);
int __wrap_MPI_Comm_create(MPI_Comm from, MPI_Group group, MPI_Comm* to) {
  note_call("MPI_Comm_create");
  return __real_MPI_Comm_create(from, group, to);
}

int __real_MPI_Win_create(void*, MPI_Aint, int, MPI_Info, MPI_Comm, MPI_Win*);
int __wrap_MPI_Win_create(void* base, MPI_Aint bytes, int unit, MPI_Info info, MPI_Comm comm,
                          MPI_Win* window) {
  note_call("MPI_Win_create");
  return __real_MPI_Win_create(base, bytes, unit, info, comm, window);
}

int __real_MPI_Win_allocate_shared(MPI_Aint, int, MPI_Info, MPI_Comm, void*, MPI_Win*);
int __wrap_MPI_Win_allocate_shared(MPI_Aint bytes, int unit, MPI_Info info, MPI_Comm comm,
                                   void* base, MPI_Win* window) {
  note_call("MPI_Win_allocate_shared");
  return __real_MPI_Win_allocate_shared(bytes, unit, info, comm, base, window);
}

int __real_MPI_Alloc_mem(MPI_Aint, MPI_Info, void*);
int __wrap_MPI_Alloc_mem(MPI_Aint bytes, MPI_Info info, void* base) {
  note_call("MPI_Alloc_mem");
  return __real_MPI_Alloc_mem(bytes, info, base);
}

int __real_MPI_Type_commit(MPI_Datatype*);
int __wrap_MPI_Type_commit(MPI_Datatype* type) {
  note_call("MPI_Type_commit");
  return __real_MPI_Type_commit(type);
}

int __real_MPI_Op_create(MPI_User_function*, int, MPI_Op*);
int __wrap_MPI_Op_create(MPI_User_function* function, int commutes, MPI_Op* operation) {
  note_call("MPI_Op_create");
  return __real_MPI_Op_create(function, commutes, operation);
}

}  // extern "C"
