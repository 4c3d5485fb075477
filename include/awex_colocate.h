/* awex-colocate: how a trainer or an inference engine attaches to a resident job.
 *
 * An engine is a process of its own beside a rank of `awex-colocate serve --attach ROLES`. The rank
 * owns the memory that the engine's weights, optimizer state or KV cache lie in, by tag; this
 * library maps that memory into the engine's process at addresses that never change, gives it up
 * and maps it again as the job hands it from one role to the other. docs/engines.md tells it from
 * the beginning.
 *
 * Rules that hold for every call
 * - C11; no CUDA, MPI or C++ types. The library never exits, aborts or throws into its caller.
 * - A call returns AWEX_OK or one of the exit codes of `awex-colocate`; awex_error says why, in
 *   words, until the thread's next call.
 * - Calls that wait end after `timeout_s` seconds at the latest, with AWEX_DEADLINE; what was asked
 *   for is taken back then, unless the job is in the midst of it (then the call goes on until that
 *   is over, which the job's own deadlines bound).
 * - The engine touches a tag's memory only while that memory is mapped: from attach, take_back or
 *   wait until its next hand_over, take_back, wait, release or ready. Those calls are its consent;
 *   nothing of it goes or comes at any other time. What the engine has queued on its GPU that uses
 *   the memory must be done when it calls them (or in the callback before_release).
 * - Calls on one engine come from one thread at a time. Several engines in a process are possible.
 *   A callback may ask (awex_memory, awex_alloc, …) but not wait. A child of fork has no engine.
 * - Once the rank has gone, calls that speak to it return AWEX_LOST. awex_memory, awex_place,
 *   awex_kept, awex_alloc and awex_detach go on as before, so that a trainer can save what is
 *   mapped; awex_restore brings back what was not.
 */
#ifndef AWEX_COLOCATE_H
#define AWEX_COLOCATE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct or a call changes its meaning. */
#define AWEX_ABI_VERSION 2

/* Statuses: the exit codes of `awex-colocate`. */
typedef enum awex_status {
  AWEX_OK = 0,
  AWEX_FAILED = 1,        /* At run time: see awex_error. */
  AWEX_WRONG_REQUEST = 2, /* Options, layout or tensors that do not fit. */
  AWEX_MISMATCH = 3,      /* Bytes differ from the trainer's; nothing was committed. */
  AWEX_DEADLINE = 4,      /* A wait took too long. */
  AWEX_LOST = 5           /* The rank, or the job, is gone; what is mapped here stays. */
} awex_status;

typedef enum awex_role { AWEX_TRAINER = 0, AWEX_INFERENCE = 1 } awex_role;

typedef enum awex_tag { AWEX_WEIGHTS = 0, AWEX_OPTIMIZER = 1, AWEX_KV_CACHE = 2 } awex_tag;
#define AWEX_TAGS 3

/* Whether a trainer's weights lie in memory that it has taken itself, which the job reads where it
 * is (awex_declare_own), and what becomes of that when the trainer's memory is to go. */
typedef enum awex_own {
  AWEX_OWN_NONE = 0,  /* They lie in the job's memory. */
  AWEX_OWN_STAYS = 1, /* It stays on the GPU, beside whatever inference has there. */
  AWEX_OWN_MOVES = 2  /* The engine moves it away in before_release, and back in after_resume. */
} awex_own;

/* An attached engine. Made by awex_attach, freed by awex_detach. */
typedef struct awex_engine awex_engine;

/* What this library is: AWEX_ABI_VERSION of its build, and "0.1.0 (git hash)". */
uint32_t awex_abi_version(void);
const char* awex_build(void);
/* What the last call of this thread that failed says: one or two lines (what, why; what to do).
 * Empty after a call that succeeded. Valid until this thread's next call. */
const char* awex_error(void);

typedef struct awex_attach_options {
  size_t struct_size; /* sizeof(awex_attach_options) */
  /* The DIR of `serve --job DIR`. NULL or "": what AWEX_COLOCATE_JOB says, else the only job of
   * this user on this host; of several AWEX_WRONG_REQUEST names all. */
  const char* job;
  awex_role role;
  const char* name;     /* What people know the engine by: "vllm 0.32.0"; at most 31 bytes. */
  const char* gpu_uuid; /* "GPU-8f3c…" or the 32 hex digits, of the GPU that the engine uses; NULL
                         * on the `host` backend. */
  int32_t device;       /* Index of the device in this process; on `host` the position of the
                         * engine among those of its role on this host. */
  /* Bytes that the engine needs by tag. 0: for weights what the rank's layout holds, for others
   * none. They are the rank's from then on: given to other roles and brought back. */
  uint64_t bytes[AWEX_TAGS];
  double timeout_s; /* Of this call; 0: 600. */
  /* A trainer's: where its weights are, and what becomes of them; then `bytes` asks for none. */
  awex_own own_weights;
} awex_attach_options;

/* Attaches: waits for the rank of this role on this GPU, also where its job has not begun yet (a
 * line on stderr tells so after 3 s, and what is there instead), takes addresses for all tags and
 * maps what is there. A trainer's memory is mapped on return, with undefined content at the first
 * time; it is not where a former trainer has gone while its memory was handed over: awex_take_back
 * maps it. Inference's weights are mapped only if the job admits engines by digest (it says so by
 * awex_memory's `is_mapped`); its KV cache is not. On failure `*engine` is NULL. */
awex_status awex_attach(const awex_attach_options* options, awex_engine** engine);

/* Leaves the job and frees the handle; NULL is nothing. The memory stays with the rank, for the
 * next engine that attaches in its place, and is no longer mapped here: nothing may use it. */
void awex_detach(awex_engine* engine);

/* Where this engine stands in the job. Text is valid as long as the engine. */
typedef struct awex_place_in_job {
  int32_t rank;      /* World rank of its rank. */
  int32_t role_rank; /* Position among the ranks of its role. */
  const char* host;
  const char* model;   /* Name of the job's model. */
  const char* layout;  /* "megatron:tp=2": the role's layout, as the job prints it. */
  const char* backend; /* "cuda" or "host". */
  int32_t reattached;  /* 1 when the memory holds what a former engine left (see awex_kept). */
  uint64_t version;    /* Last committed version, 0 for none. */
} awex_place_in_job;
awex_status awex_place(awex_engine* engine, awex_place_in_job* place);

/* A tag's memory in this process. `address` is fixed from awex_attach to awex_detach; NULL and 0
 * bytes where the engine has none. Of weights that are the engine's own `is_mapped` says whether
 * they are where they were declared. */
typedef struct awex_memory_info {
  void* address;
  uint64_t bytes;
  int32_t is_mapped;
} awex_memory_info;
awex_status awex_memory(awex_engine* engine, awex_tag tag, awex_memory_info* info);

/* Inference, before awex_seal: where a tag's memory is not there yet, maps a placeholder over all
 * of its addresses, so that they can be computed with before the job gives the memory: engines
 * capture CUDA graphs over their KV cache while they start. What is written at one place is read at
 * others, and nothing of it stays: it is the memory of one chunk (1 GiB at the most, and a last,
 * shorter one) at the addresses of all. It goes in awex_seal, also in one that is refused, when
 * nothing queued may use it any more; before the next one it may be mapped again. */
awex_status awex_map_placeholder(awex_engine* engine, awex_tag tag);

/* A tensor. For weights, `name` is the engine's own, as the layout lists it. `dtype` is "bf16",
 * "f16", "f32", "f8_e4m3", …, as the job's reports have them. Matrices have rows and cols, stacks
 * of matrices (experts) all their rows, vectors one row. */
typedef struct awex_tensor {
  const char* name;
  const char* dtype;
  uint64_t rows;
  uint64_t cols;
  uint64_t offset_bytes; /* From the start of its tag's memory. */
  awex_tag tag;
} awex_tensor;

/* What the rank's layout holds: every tensor of weights that the engine must declare, in the
 * layout's order, each with a place where it may lie. `index` from 0; AWEX_WRONG_REQUEST behind the
 * last. Text is valid as long as the engine. */
uint64_t awex_layout_size(awex_engine* engine);
awex_status awex_layout_tensor(awex_engine* engine, uint64_t index, awex_tensor* tensor);

/* Says where a tensor lies: in a tag's memory, at an offset that is a multiple of its element.
 * Weights: all of the layout's must be declared before awex_seal. Optimizer state: what is declared
 * is proven over an offload; what is not is moved all the same. */
awex_status awex_declare(awex_engine* engine, const awex_tensor* tensor);
/* Says where a tensor of weights lies in memory of the trainer's own, attached with `own_weights`;
 * its offset and tag do not matter. On cuda what cudaMalloc has given, or virtual memory that was
 * taken with a handle type of POSIX file descriptors; on host a shared mapping of a file that the
 * process has a descriptor of. AWEX_WRONG_REQUEST, with the remedy, for memory that no other
 * process can map. The memory must stay what it is until awex_detach or, where it moves, until the
 * callback before_release; the callback after_resume then declares all tensors again where they lie
 * elsewhere. If the process dies, what is in this memory is gone. */
awex_status awex_declare_own(awex_engine* engine, const awex_tensor* tensor, const void* address);
/* Ends the declaration. The rank compares it with its layout: AWEX_WRONG_REQUEST names what is
 * missing, unknown or of another shape, and the likely cause; then declare all again, as the next
 * awex_declare begins a new list, and seal again. After AWEX_DEADLINE the answer is still to come:
 * call it again. For inference that is admitted by digest, its loaded weights must be in place. */
awex_status awex_seal(awex_engine* engine, double timeout_s);

/* A trainer: its weights are those of a step, and may be handed over. Returns when the job has
 * committed them as a version (into `*version`, may be NULL) and has taken this engine's memory
 * (nothing of it is mapped), or has failed: then the memory is mapped or not as awex_memory says,
 * nothing is lost, and another hand_over may follow. The trainer of world rank 0 begins the
 * update; where that is not an engine, a shell does (`awex-colocate update --job DIR`). */
awex_status awex_hand_over(awex_engine* engine, double timeout_s, uint64_t* version);
/* A trainer: wants its memory back. Returns when all of it is mapped, with its bytes, and that of
 * the other trainers; at once where its own is. Inference's may still be on its way out. */
awex_status awex_take_back(awex_engine* engine, double timeout_s);
/* The same of its weights alone, which is what forward and backward need: its optimizer state stays
 * in host memory until awex_take_back, and what the GPU would hold of it is free for activations.
 * All trainers of a job call the one or the other. Until the state is back awex_writing is refused;
 * awex_hand_over is not. */
awex_status awex_take_back_weights(awex_engine* engine, double timeout_s);
/* Inference: gives its memory to whoever needs it and returns when it serves a version that is
 * newer than `newer_than`: weights and KV cache are mapped, the KV cache with undefined content, on
 * all inference ranks. Most of the trainers' memory may still be on its way out. Returns at once
 * where that is so. A command that fails before does not end the wait. */
awex_status awex_wait(awex_engine* engine, uint64_t newer_than, double timeout_s,
                      uint64_t* version);
/* Inference: gives its memory up; returns when a command of the job (a take-back) has taken it, at
 * once where none is mapped, and where no command takes it (`serve --no-offload`). */
awex_status awex_release(awex_engine* engine, double timeout_s);
/* Either: consents to one command of the job, whichever comes, and returns when it is over. */
awex_status awex_ready(awex_engine* engine, double timeout_s);

/* A trainer whose rank, or job, is lost (AWEX_LOST): brings back what was away then, from the host
 * memory that the rank has shared, to the same addresses, in memory of this process's own; what was
 * mapped, or was on its way and had not been copied yet, is there anyway. All of it is then as it
 * was handed over. What comes back is compared with the digests that were taken on its way out;
 * `*proven` (may be NULL) is 0 where some were not taken (`--verify off`). The engine can save it,
 * detach, and attach to another job. AWEX_MISMATCH where bytes differ: start from a checkpoint;
 * AWEX_WRONG_REQUEST while the rank's process is there, or where another engine has had its place
 * since. What comes back needs as much room on the GPU as it has bytes (AWEX_FAILED where that is
 * not there: try again when it is); the host memory is kept until awex_detach. The callback
 * after_resume is called for each tag that has come back, and for weights of the engine's own that
 * it has moved away. */
awex_status awex_restore(awex_engine* engine, int32_t* proven);

/* Whether the rank is there: AWEX_LOST where it has gone, with the cause. Does not wait, and does
 * nothing that the rank asks for: for loops that wait for something else. */
awex_status awex_check(awex_engine* engine);

/* A trainer, around what writes its weights and optimizer state (an optimizer's step): if the
 * process dies in between, the memory counts as torn, and the next engine gets that of the last
 * hand-over. Until awex_consistent calls that consent are refused. Where they are used they also
 * count steps, by which the job knows whether weights are still those that it has handed over.
 * Cheap: a store to shared memory. */
awex_status awex_writing(awex_engine* engine);
awex_status awex_consistent(awex_engine* engine);

/* Callbacks, called by hand_over, take_back, wait, release, ready and restore on their caller's
 * thread. They return 0, or else fail the job's command. NULL takes one away. */
typedef int (*awex_callback)(void* user, awex_tag tag, uint64_t version);
/* Before a tag's memory goes: nothing queued may use it on return. */
awex_status awex_before_release(awex_engine* engine, awex_callback callback, void* user);
/* A tag's memory is mapped again: a trainer's with its bytes, inference's with none yet. */
awex_status awex_after_resume(awex_engine* engine, awex_callback callback, void* user);
/* Inference's weights are those of `version`: what was derived from older ones is void. */
awex_status awex_weights_changed(awex_engine* engine, awex_callback callback, void* user);

/* Memory from a tag's arena, 512-byte aligned, for an allocator (PyTorch's
 * CUDAPluggableAllocator has these signatures). awex_use sets the calling thread's engine and tag;
 * awex_alloc returns NULL, and awex_error says why, when the tag's bytes are used up or not mapped;
 * 0 bytes are NULL. awex_free may be called on any thread, also while the memory is not mapped.
 * What awex_declare places by hand must not be mixed with it in one tag. */
awex_status awex_use(awex_engine* engine, awex_tag tag);
void* awex_alloc(ssize_t bytes, int device, void* stream);
void awex_free(void* memory, ssize_t bytes, int device, void* stream);

/* Tells that `bytes` of the GPU are the engine's own, for `what` (1 to 31 bytes: "KV cache", "CUDA
 * graphs", "NCCL"), for `awex-colocate status`; again under the same name replaces it. 64 names at
 * most. */
awex_status awex_book(awex_engine* engine, const char* what, uint64_t bytes);

/* Up to 16 MiB of the trainer's own (step, random state, place in the data) that the rank keeps
 * from now on with what the memory holds, and gives to the next engine in its place; one that
 * returns to the last hand-over gets what was kept by then. */
#define AWEX_MOST_KEPT_BYTES (16u << 20)
awex_status awex_keep(awex_engine* engine, const void* bytes, size_t count);
/* What was kept with the state that the memory holds. `*bytes` is valid until the next awex_keep or
 * awex_detach; NULL and 0 for nothing. */
awex_status awex_kept(awex_engine* engine, const void** bytes, size_t* count);

#ifdef __cplusplus
}
#endif

#endif
