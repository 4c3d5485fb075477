# awex_add_test(NAME <name> SOURCES <files> LIBRARIES <targets> [RANKS <n>...] [GPUS <n>]
#               [TIMEOUT <seconds>] [COST <n>] [MPI_MAIN] [FAST_UNWIND] [RACES])
#
# Declares one doctest program and its ctest entries. Without RANKS it runs alone; with RANKS it runs
# once under mpirun for each number of ranks (entry <name>_<n>). GPUS > 0 labels it `gpu` and lets
# one such test run at a time. Exit code 77 means skipped. MPI_MAIN links the main that initialises
# MPI and reduces the verdict over the ranks; the plain main fails when no test case ran.
#
# Under a sanitizer only the fewest and the most RANKS run: those between touch the same code, and what
# they compute is compared in the other build.
#
# FAST_UNWIND is for tests with very many allocations, which neither MPI nor hwloc does for them:
# AddressSanitizer then follows frame pointers, several times faster than unwind tables, which
# it needs only to tell whose leaks those of such libraries are (tests/support/lsan.supp).
#
# RACES labels tests of what threads share, which the preset tsan builds (the target `races`) and runs.
# They start no MPI, whose own threads ThreadSanitizer cannot follow.
add_custom_target(races)
function(awex_add_test)
  cmake_parse_arguments(ARG "MPI_MAIN;FAST_UNWIND;RACES" "NAME;GPUS;TIMEOUT;COST" "SOURCES;LIBRARIES;RANKS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SOURCES})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_LIBRARIES} doctest::doctest awex_options)
  target_include_directories(${ARG_NAME} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  if(ARG_MPI_MAIN)
    target_link_libraries(${ARG_NAME} PRIVATE awex_mpi_test_main)
  else()
    target_link_libraries(${ARG_NAME} PRIVATE awex_test_main)
  endif()
  if(ARG_RANKS)
    if(AWEX_SANITIZE)
      list(GET ARG_RANKS 0 fewest)
      list(GET ARG_RANKS -1 most)
      set(ARG_RANKS ${fewest} ${most})
      list(REMOVE_DUPLICATES ARG_RANKS)
    endif()
    foreach(ranks ${ARG_RANKS})
      add_test(NAME ${ARG_NAME}_${ranks}
        COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${ARG_NAME}>)
      awex_set_test_properties(${ARG_NAME}_${ranks} "${ranks}" "${ARG_GPUS}" "${ARG_TIMEOUT}" "${ARG_COST}")
    endforeach()
  else()
    add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
    awex_set_test_properties(${ARG_NAME} 1 "${ARG_GPUS}" "${ARG_TIMEOUT}" "${ARG_COST}")
  endif()
  if(ARG_RACES)
    add_dependencies(races ${ARG_NAME})
    set_tests_properties(${ARG_NAME} PROPERTIES LABELS races)
  endif()
  if(ARG_FAST_UNWIND AND AWEX_SANITIZE)
    set_tests_properties(${ARG_NAME} PROPERTIES
      ENVIRONMENT_MODIFICATION "ASAN_OPTIONS=string_append::fast_unwind_on_malloc=1")
  endif()
endfunction()

# awex_add_script_test(NAME <name> COMMAND <command...> [PROCESSORS <n>] [GPUS <n>] [TIMEOUT <seconds>]
#                      [COST <n>])
# Declares a test that is a script, with the same labels, skip code and environment. One that mostly
# waits keeps the default of one processor, so that others run beside it. Of tests that are ready, the
# one with the highest COST starts first: about the seconds it takes, where they are many.
function(awex_add_script_test)
  cmake_parse_arguments(ARG "" "NAME;PROCESSORS;GPUS;TIMEOUT;COST" "COMMAND" ${ARGN})
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_COMMAND})
  if(NOT ARG_PROCESSORS)
    set(ARG_PROCESSORS 1)
  endif()
  awex_set_test_properties(${ARG_NAME} "${ARG_PROCESSORS}" "${ARG_GPUS}" "${ARG_TIMEOUT}" "${ARG_COST}")
endfunction()

function(awex_set_test_properties name processors gpus timeout cost)
  if(NOT timeout)
    set(timeout 120)
  endif()
  if(processors GREATER 2)
    set(processors 2) # ranks are oversubscribed; more would only serialise the suite
  endif()
  set_tests_properties(${name} PROPERTIES
    PROCESSORS ${processors} TIMEOUT ${timeout} SKIP_RETURN_CODE 77
    ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMPI_MCA_rmaps_base_oversubscribe=1")
  if(cost)
    set_tests_properties(${name} PROPERTIES COST ${cost})
  endif()
  if(gpus)
    set_tests_properties(${name} PROPERTIES LABELS gpu RESOURCE_LOCK gpu)
  endif()
endfunction()
